"""Pictures of all sizes to records of one size: in parallel, shard by shard, resumable.

Every shard is made under another name and renamed when it is on the disk, then its own small JSON
says what it was made from and its digest; index.json comes last. Whoever is killed, and whenever,
repeats the command: shards that are whole stay, and the bytes are those of an undisturbed run.
"""

import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from multiprocessing import connection
from typing import Any

import numpy as np

from gdistill import errors
from gdistill.data import files
from gdistill.data import folder
from gdistill.data import records
from gdistill.data import source
from gdistill.data import tfds
from gdistill.data import worker

IMAGENET = 1_281_167  # training pictures
SETTINGS, CORRUPT = 'prepare.json', 'corrupt.txt'
_WNID = re.compile(r'n\d{8}')
_SPOOL = f'{files.TEMPORARY}pictures'
_SPLIT = re.compile(r'[A-Za-z0-9][A-Za-z0-9._-]{0,63}')


@dataclasses.dataclass(frozen=True)
class Settings:
  """The flags of `gdistill prepare`."""

  source: str  # a folder, an archive, or tfds:NAME
  out: str
  size: int = 64
  channels: int = 3
  split: str = 'train'
  held_out_split: str = 'validation'  # '': there is none
  data_dir: str = ''  # of TensorFlow Datasets
  shard_size: int = 4096
  workers: int = 1
  skip_corrupt: bool = False
  allow_incomplete: bool = False

  @property
  def shape(self) -> tuple[int, int, int]:
    return self.size, self.size, self.channels

  @property
  def splits(self) -> list[str]:
    return [self.split, *([self.held_out_split] if self.held_out_split else [])]


@dataclasses.dataclass(frozen=True)
class Shard:
  """Examples `first` to `last` - 1 of a split."""

  split: str
  number: int
  first: int
  last: int
  key: str  # of what it is made from
  made: bool  # before: its digest is to be checked

  @property
  def name(self) -> str:
    return f'{self.number:05d}.array_record'


@dataclasses.dataclass(frozen=True)
class Job:
  settings: Settings
  sources: dict[str, source.Source]
  shards: list[Shard]

  @property
  def total(self) -> int:
    """Pictures of all splits."""
    return sum(s.last - s.first for s in self.shards)

  @property
  def done(self) -> int:
    """Those in shards that were made before."""
    return sum(s.last - s.first for s in self.shards if s.made)


def check(settings: Settings) -> None:
  """ConfigError or DataError for what can be told without writing anything."""
  for name, low, high in (('size', 1, 4096), ('workers', 1, 256), ('shard_size', 1, 10**6)):
    value = getattr(settings, name)
    if not low <= value <= high:
      raise errors.ConfigError(f'--{name}={value} must be from {low} to {high}')
  if settings.channels not in (1, 3):
    raise errors.ConfigError(f'--channels={settings.channels} must be 1 (grey) or 3 (colour)')
  for name in ('split', 'held_out_split'):
    value = getattr(settings, name)
    if value and not _SPLIT.fullmatch(value):
      raise errors.ConfigError(
        f'--{name}={value!r} names a folder and must be 1 to 64 of A-Z a-z 0-9 . _ -'
      )
  if settings.held_out_split and settings.split in ('', settings.held_out_split):
    raise errors.ConfigError(
      f'--held_out_split={settings.held_out_split!r} must differ from --split={settings.split!r}, '
      "and be '' where that is ''"
    )
  for name in ('source', 'out'):
    if '://' in getattr(settings, name):
      raise errors.ConfigError(
        f'--{name}={getattr(settings, name)} must be a local path; copy or mount it'
      )
  if not _tfds(settings) and not os.path.exists(settings.source):
    raise errors.DataError(
      f'--source={settings.source} does not exist; name a folder, an archive or tfds:NAME'
    )
  if _begun(settings) is None and os.path.isdir(settings.out):
    others = [n for n in os.listdir(settings.out) if n != 'lock.json' and not n.startswith('.tmp-')]
    if others:
      raise errors.ConfigError(
        f'--out={settings.out} has {others[0]} in it and was not begun by this; name another folder'
      )


def plan(settings: Settings, look: Callable[[], None]) -> Job:
  """What is to be made; `look` is called often and may raise. To be called as the only writer."""
  _clean(settings)
  sources = _sources(settings, look)
  if settings.held_out_split:
    train, held = (sources[s] for s in settings.splits)
    source.same_classes(train, held, f'--source={settings.source}', tuple(settings.splits))
  _check_imagenet(settings, sources[settings.split].class_names, len(sources[settings.split]))
  begun, now = _begun(settings), _identity(settings, sources)
  if begun is None:
    files.write(os.path.join(settings.out, SETTINGS), files.dumps(now))
  elif begun['classes'] != now['classes']:
    raise errors.ConfigError(
      f'--source={settings.source} has other classes than {settings.out} was begun with; '
      'name another folder with --out'
    )
  shards = []
  for split, data in sources.items():
    os.makedirs(os.path.join(settings.out, split), exist_ok=True)
    for number, first in enumerate(range(0, len(data), settings.shard_size)):
      look()
      last = min(first + settings.shard_size, len(data))
      key = source.fingerprint(data.read.part(i) for i in range(first, last))
      shard = Shard(split, number, first, last, key, made=False)
      said = _said(settings, shard)
      made = said is not None and (settings.skip_corrupt or not said['skipped'])
      shards.append(dataclasses.replace(shard, made=made))
  job = Job(settings, sources, shards)
  _check_disk(job)
  return job


def work(
  job: Job, look: Callable[[], None], update: Callable[[int, float], None]
) -> dict[str, dict[str, Any]]:
  """Makes what is missing and returns {split: index}; DataError names the corrupt pictures.

  `update(done, pictures a second)` is called often, and `look` may raise: nothing is lost.
  """
  settings = job.settings
  for split in settings.splits if job.done < job.total else ():
    with contextlib.suppress(FileNotFoundError):
      os.unlink(os.path.join(settings.out, split, records.INDEX))
  corrupt: list[str] = []
  with contextlib.closing(_results(job, look, update)) as results:
    for result in results:
      corrupt += result.get('corrupt', ())
      if 'error' in result:
        raise errors.DataError(result['error'])
  if corrupt and not settings.skip_corrupt:
    corrupt.sort()
    file = os.path.join(settings.out, CORRUPT)
    files.write(file, ('\n'.join(corrupt) + '\n').encode('utf-8', 'surrogateescape'))
    raise errors.DataError(
      f'{len(corrupt):,} of {job.total:,} pictures cannot be used: {"; ".join(corrupt[:20])}'
      f'{f"; all are in {file}" if len(corrupt) > 20 else ""}. Mend or remove them and repeat the '
      'command, or repeat it with --skip_corrupt; the other shards are kept'
    )
  indices = {split: _index(job, split) for split in settings.splits}
  first = indices[settings.split]
  _check_imagenet(settings, first['class_names'], first['count'])
  for split, index in indices.items():
    files.write(os.path.join(settings.out, split, records.INDEX), files.dumps(index))
  return indices


def _results(
  job: Job, look: Callable[[], None], update: Callable[[int, float], None]
) -> Iterator[dict[str, Any]]:
  """What the worker processes say of every shard, as they finish them."""
  context = multiprocessing.get_context('spawn')
  taken, stop = context.Value('q', 0), context.Event()
  made = [context.Value('q', 0, lock=False) for _ in range(job.settings.workers)]
  pipes, processes = [], []
  begun, count = time.monotonic(), 0
  try:
    with _one_thread_each(), worker.unsignalled():
      for counter in made[: len(job.shards)]:
        ours, theirs = context.Pipe(duplex=False)
        args = job, taken, stop, counter, theirs
        processes.append(context.Process(target=_process, args=args, daemon=True))
        processes[-1].start()
        theirs.close()
        pipes.append(ours)
    while pipes:
      for pipe in connection.wait(pipes, timeout=0.2):
        try:
          yield pipe.recv()
        except EOFError:
          pipes.remove(pipe)
      look()
      if count != sum(c.value for c in made):
        count = sum(c.value for c in made)
        update(job.done + count, count / (time.monotonic() - begun))
    for process in processes:
      process.join(30)
    dead = [p.exitcode for p in processes if p.exitcode]
    if dead:
      raise errors.DataError(
        f'a worker process died with exit code {dead[0]}, by lack of memory (-9) or over a picture '
        'that crashed its decoder; repeat the command, with fewer --workers if it was memory'
      )
  finally:
    stop.set()
    for process in processes:
      process.join(10)
      if process.is_alive():
        process.kill()
        process.join()


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
  """Processes started meanwhile multiply matrices in one thread: they are as many as the cores."""
  before = os.environ.get('OPENBLAS_NUM_THREADS')
  os.environ['OPENBLAS_NUM_THREADS'] = '1'
  try:
    yield
  finally:
    os.environ.pop('OPENBLAS_NUM_THREADS')
    if before is not None:
      os.environ['OPENBLAS_NUM_THREADS'] = before


def _process(job: Job, taken: Any, stop: Any, counter: Any, pipe: connection.Connection) -> None:
  """One worker: takes the next shard until there is none."""
  worker.start()
  with pipe:
    while not stop.is_set():
      with taken.get_lock():
        number = taken.value
        taken.value += 1
      if number >= len(job.shards):
        return
      try:
        result = _shard(job, job.shards[number], stop, counter)
      except (OSError, RuntimeError) as e:  # RuntimeError: array_record's, when the disk is full
        reason = errors.brief(e)
        result = {'error': f'{job.settings.out} cannot be written: {reason}; free space'}
      with contextlib.suppress(BrokenPipeError):
        pipe.send(result)


def _shard(job: Job, shard: Shard, stop: Any, counter: Any) -> dict[str, Any]:
  """Makes a shard, unless it is there and whole: {'corrupt': what could not be read}."""
  settings, data = job.settings, job.sources[shard.split]
  at = os.path.join(settings.out, shard.split)
  if shard.made and files.sha256(os.path.join(at, shard.name)) == _said(settings, shard)['sha256']:
    return {}
  from array_record.python import array_record_module  # heavy

  temporary = os.path.join(at, f'{files.TEMPORARY}{secrets.token_hex(8)}')
  corrupt, skipped, labels = [], [], []
  writer = array_record_module.ArrayRecordWriter(temporary, records.WRITER)
  try:
    for i in range(shard.first, shard.last):
      if stop.is_set():
        return {}
      try:
        pixels, label = data[i]
      except errors.DataError as e:
        corrupt.append(str(e))
        skipped.append(data.read.name(i))
      else:
        if not corrupt or settings.skip_corrupt:
          writer.write(records.record(pixels, label, shard.number, len(labels)))
          labels.append(label)
      counter.value += not shard.made
    writer.close()
    if corrupt and not settings.skip_corrupt:
      return {'corrupt': corrupt}
    said = {
      'key': shard.key, 'count': len(labels), 'bytes': os.path.getsize(temporary),
      'sha256': files.sha256(temporary), 'labels': labels, 'skipped': skipped,
    }  # fmt: skip
    files.publish(temporary, os.path.join(at, shard.name))
    files.write(
      os.path.join(at, f'{shard.number:05d}.json'),
      files.dumps({**said, 'digest': records.digest(said)}),
    )
    return {'corrupt': corrupt}
  finally:
    with contextlib.suppress(FileNotFoundError):
      os.unlink(temporary)


def _index(job: Job, split: str) -> dict[str, Any]:
  """What index.json will say; writes the labels."""
  settings, data = job.settings, job.sources[split]
  shards = [s for s in job.shards if s.split == split]
  said = [_said(settings, s) for s in shards]
  at = os.path.join(settings.out, split)
  if None in said:
    raise errors.DataError(f'{at} was changed while it was prepared; repeat the command')
  kept = {s.name for s in shards} | {f'{s.number:05d}.json' for s in shards}
  for name in os.listdir(at):
    if re.fullmatch(r'\d{5}\.(array_record|json)', name) and name not in kept:
      os.unlink(os.path.join(at, name))  # the source had more when this was begun
  labels = np.concatenate([np.array(s['labels'], '<i4') for s in said]).tobytes()
  if not labels:
    raise errors.DataError(f'--source={settings.source}: no picture of {split!r} can be read')
  files.write(os.path.join(at, records.LABELS), labels)
  index = {
    'format': records.FORMAT,
    'version': records.VERSION,
    'shape': list(settings.shape),
    'count': sum(s['count'] for s in said),
    'class_names': list(data.class_names),
    'labels': hashlib.sha256(labels).hexdigest(),
    'shards': [
      {'name': shard.name, **{k: s[k] for k in ('count', 'bytes', 'sha256')}}
      for shard, s in zip(shards, said, strict=True)
    ],
    'made': {
      'crop': 'centre square',
      'resize': 'area, rounded to nearest',
      'source': settings.source if _tfds(settings) else 'class folders',
      'split': split,
      'fingerprint': data.fingerprint,
      'skipped': [name for s in said for name in s['skipped']],
    },
  }
  return {**index, 'digest': records.digest(index)}


def _said(settings: Settings, shard: Shard) -> dict[str, Any] | None:
  """What the shard's JSON says of it, if it speaks of these pictures and the file is there."""
  at = os.path.join(settings.out, shard.split)
  try:
    with open(os.path.join(at, f'{shard.number:05d}.json'), 'rb') as f:
      said = json.load(f)
    file = os.path.join(at, shard.name)
    same = said['key'] == shard.key and said['digest'] == records.digest(said)
    return said if same and said['bytes'] == os.path.getsize(file) else None
  except (OSError, ValueError, KeyError, TypeError, RecursionError):
    return None


def _tfds(settings: Settings) -> str:
  """The name of the TensorFlow data set, or ''."""
  return settings.source.partition(':')[2] if settings.source.startswith('tfds:') else ''


def _sources(settings: Settings, look: Callable[[], None]) -> dict[str, source.Source]:
  name = _tfds(settings)
  try:
    if name:
      return {s: tfds.split(name, s, settings.data_dir, settings.shape) for s in settings.splits}
    found = folder.listing(settings.source, os.path.join(settings.out, _SPOOL), look)
    return {s: folder.split(found, s, settings.shape) for s in settings.splits}
  except errors.DataError as e:  # the same, in the words of this command
    text = str(e).replace('data.path=', '--source=').replace('data.dataset=', '--source=tfds:')
    raise errors.DataError(text) from e


def _identity(settings: Settings, sources: dict[str, source.Source]) -> dict[str, Any]:
  """What must be the same from the first start to the last."""
  names = sources[settings.split].class_names
  return {**_flags(settings), 'classes': source.fingerprint(names), 'format': records.VERSION}


def _flags(settings: Settings) -> dict[str, Any]:
  name = _tfds(settings)
  same = {k: getattr(settings, k) for k in ('size', 'channels', 'shard_size', 'split')}
  where = settings.source if name else os.path.basename(os.path.abspath(settings.source))
  return {**same, 'held_out_split': settings.held_out_split, 'source': where}


def _begun(settings: Settings) -> dict[str, Any] | None:
  """What `out` was begun with; ConfigError where that is something else."""
  file = os.path.join(settings.out, SETTINGS)
  try:
    with open(file, 'rb') as f:
      begun = json.load(f)
    now = _flags(settings)
    differ = [f'--{k}={now[k]} was {begun[k]}' for k in now if begun[k] != now[k]]
    if begun['format'] != records.VERSION:
      differ.append(f'the format was {begun["format"]!r:.20}, now {records.VERSION}')
    if not isinstance(begun['classes'], str):
      raise TypeError
  except FileNotFoundError:
    return None
  except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
    raise errors.ConfigError(f'{file} cannot be read; name another folder with --out') from e
  if differ:
    raise errors.ConfigError(
      f'--out={settings.out} was begun otherwise: {"; ".join(differ)}; repeat that command, or '
      'name another folder'
    )
  return begun


def _clean(settings: Settings) -> None:
  """Removes what was left unfinished; what lock.json's writer left, once it is surely another's."""
  for at in {settings.out, *(os.path.join(settings.out, s) for s in settings.splits)}:
    with contextlib.suppress(FileNotFoundError):
      for name in os.listdir(at):
        file = os.path.join(at, name)
        old = name.startswith('.tmp-') and time.time() - os.stat(file).st_mtime > 60
        if old or name.startswith(files.TEMPORARY) or name == CORRUPT:
          os.unlink(file)


def clean(settings: Settings) -> None:
  """Removes the pictures of an archive, which only the run that made them needs."""
  with contextlib.suppress(FileNotFoundError):
    os.unlink(os.path.join(settings.out, _SPOOL))


def _check_imagenet(settings: Settings, names: Any, count: int) -> None:
  wnids = len(names) == 1000 and all(_WNID.fullmatch(n) for n in names)
  imagenet = wnids or re.split('[/:]', _tfds(settings))[0] == 'imagenet2012'
  if imagenet and count != IMAGENET and not settings.allow_incomplete:
    raise errors.DataError(
      f'--source={settings.source} is ImageNet, whose training set has {IMAGENET:,} pictures, but '
      f'--split={settings.split} has {count:,}; complete it, or say --allow_incomplete'
    )


def _check_disk(job: Job) -> None:
  height, width, channels = job.settings.shape
  missing = [s.last - s.first for s in job.shards if not s.made]
  need = sum(n * (height * width * channels + 128) + 2**18 for n in missing)
  free = shutil.disk_usage(job.settings.out).free
  if need > free:
    raise errors.ConfigError(
      f'--out={job.settings.out} needs {need / 2**30:.2f} GiB more and {free / 2**30:.2f} are '
      'free; free space or name another disk'
    )
