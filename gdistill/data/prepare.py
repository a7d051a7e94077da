"""Converts pictures of any size to records of one size, shard by shard in parallel processes.

After `gdistill prepare` was killed, the same command resumes the work: finished shards stay on the
disk, and the final bytes are those of an uninterrupted run.
"""

import contextlib
import dataclasses
import math
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Iterator
from multiprocessing import connection
from typing import Any

from gdistill import errors
from gdistill.data import earlier
from gdistill.data import files
from gdistill.data import folder
from gdistill.data import listings
from gdistill.data import prepare_settings
from gdistill.data import prepared_shards
from gdistill.data import records
from gdistill.data import source
from gdistill.data import tfds
from gdistill.data import worker

# File in the output folder that lists all unusable pictures.
CORRUPT = 'corrupt.txt'
# Temporary file in the output folder, to which the pictures of an archive are unpacked.
_SPOOL = f'{files.TEMPORARY}pictures'


@dataclasses.dataclass(frozen=True)
class Job:
  """The work of `gdistill prepare`: the shards to write, and the source of every split."""

  settings: prepare_settings.Settings
  sources: dict[str, source.Source]
  shards: list[prepared_shards.Shard]
  earlier: bool = False  # whether an earlier version of gdistill began the output folder

  @property
  def total(self) -> int:
    """Returns the number of pictures in all splits."""
    return sum(s.last - s.first for s in self.shards)

  @property
  def done(self) -> int:
    """Returns how many pictures lie in shards that earlier runs of `gdistill prepare` wrote."""
    return sum(s.last - s.first for s in self.shards if s.done)


def plan(settings: prepare_settings.Settings, poll: Callable[[], None]) -> Job:
  """Removes temporary files from the output folder and returns the job to do.

  Call `plan` only while no other process writes to the output folder. `poll()` is called between
  pictures and between shards, and may raise to stop the work.
  """
  _clean(settings)
  sources, is_earlier = _sources(settings, poll), prepare_settings.is_earlier(settings)
  if is_earlier:
    _check_read_as_before(settings, sources, poll)
    sources = {name: data.before() for name, data in sources.items()}
  if settings.held_out_split:
    train, held = (sources[s] for s in settings.splits)
    try:
      source.same_classes(train, held, f'--source={settings.source}', tuple(settings.splits))
    except errors.DataError as e:
      raise errors.DataError(_with_flags(str(e))) from e
  class_names = sources[settings.split].class_names
  prepare_settings.check_imagenet(settings, class_names, len(sources[settings.split]))
  prepare_settings.begin(settings, class_names)
  shards = []
  for split, data in sources.items():
    os.makedirs(os.path.join(settings.out, split), exist_ok=True)
    for number in range(math.ceil(len(data) / settings.shard_size)):
      poll()
      shards.append(prepared_shards.plan(settings, split, data, number))
  job = Job(settings, sources, shards, is_earlier)
  _check_disk(job)
  return job


def notes(job: Job) -> list[str]:
  """Returns the lines for the user about what the sources of the job passed over."""
  return [_with_flags(line) for line in source.notes(*job.sources.values())]


def work(
  job: Job, poll: Callable[[], None], update: Callable[[int, float], None]
) -> dict[str, dict[str, Any]]:
  """Writes the missing shards and the index of each split; returns {split: index}.

  Raises DataError that names the corrupt pictures, unless --skip_corrupt is set. `update(n, speed)`
  is called whenever more pictures are done: `n` is the number of pictures done, `speed` the number
  of pictures per second. `poll()` is called several times a second and may raise to stop the work;
  finished shards stay on the disk.
  """
  settings = job.settings
  for split in settings.splits if job.done < job.total else ():
    with contextlib.suppress(FileNotFoundError):
      os.unlink(os.path.join(settings.out, split, records.INDEX))
  corrupt: list[str] = []
  with contextlib.closing(_results(job, poll, update)) as results:
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
      f'{f"; all are in {file}" if len(corrupt) > 20 else ""}. Fix or remove these '
      'pictures and repeat the command, or repeat the command with --skip_corrupt to leave the '
      'pictures out; the other shards are kept'
    )
  indices = {}
  for split in settings.splits:
    shards = [s for s in job.shards if s.split == split]
    data = job.sources[split]
    indices[split] = prepared_shards.index(settings, split, data, shards, not job.earlier)
  first = indices[settings.split]
  prepare_settings.check_imagenet(settings, first['class_names'], first['count'])
  for split, index in indices.items():
    files.write(os.path.join(settings.out, split, records.INDEX), files.dumps(index))
  return indices


def _results(
  job: Job, poll: Callable[[], None], update: Callable[[int, float], None]
) -> Iterator[dict[str, Any]]:
  """Runs worker processes; yields {'corrupt': [error lines]} or {'error': line} for each shard."""
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
      poll()
      if count != sum(c.value for c in made):
        count = sum(c.value for c in made)
        update(job.done + count, count / (time.monotonic() - begun))
    for process in processes:
      process.join(30)
    dead = [p.exitcode for p in processes if p.exitcode]
    if dead:
      raise errors.DataError(
        f'a worker process died with exit code {dead[0]}: the machine ran out of memory (-9) or a '
        'picture crashed its decoder; repeat the command, with a smaller --workers to save memory'
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
  """Limits OpenBLAS to one thread in each process that starts inside the `with` block.

  More threads of OpenBLAS would only compete for the cores that the worker processes already use.
  """
  before = os.environ.get('OPENBLAS_NUM_THREADS')
  os.environ['OPENBLAS_NUM_THREADS'] = '1'
  try:
    yield
  finally:
    os.environ.pop('OPENBLAS_NUM_THREADS')
    if before is not None:
      os.environ['OPENBLAS_NUM_THREADS'] = before


def _process(job: Job, taken: Any, stop: Any, counter: Any, pipe: connection.Connection) -> None:
  """Runs in a worker process: writes one shard after another until no shard is left.

  `taken` counts the shards that all workers have begun; `stop` is an event: once `stop` is set, the
  worker ends before its next shard. `counter` counts the pictures that this worker has read, and
  `pipe` sends the result of each shard to the main process.
  """
  worker.start()
  with pipe:
    while not stop.is_set():
      with taken.get_lock():
        number = taken.value
        taken.value += 1
      if number >= len(job.shards):
        return
      try:
        shard = job.shards[number]
        data = job.sources[shard.split]
        result = {'corrupt': prepared_shards.make(job.settings, data, shard, stop, counter)}
      except (OSError, RuntimeError) as e:  # array_record raises RuntimeError on a full disk
        result = {'error': str(files.unwritable(job.settings.out, e))}
      with contextlib.suppress(BrokenPipeError):
        pipe.send(result)


def _sources(
  settings: prepare_settings.Settings, poll: Callable[[], None]
) -> dict[str, source.Source]:
  """Returns {name of a split: source of the split's pictures}.

  The pictures of an archive are unpacked to one temporary file in the output folder.
  """
  name = settings.tfds
  try:
    if name:
      return {s: tfds.split(name, s, settings.data_dir, settings.shape) for s in settings.splits}
    spool = os.path.join(settings.out, _SPOOL)
    found = listings.listing(settings.source, settings.splits, spool, poll)
    return {
      s: folder.split(found, s, settings.shape, s != settings.split, poll) for s in settings.splits
    }
  except errors.DataError as e:
    raise errors.DataError(_with_flags(str(e))) from e


def _with_flags(text: str) -> str:
  """Replaces the recipe fields in a line for the user by the flags of `prepare`."""
  text = text.replace(folder.CLASSES_AT_TOP, "set --split='' and --held_out_split=''")
  text = text.replace(folder.NO_HELD_OUT, "set --held_out_split='' to prepare no held-out split")
  return text.replace('data.path=', '--source=').replace('data.dataset=', '--source=tfds:')


def _check_read_as_before(
  settings: prepare_settings.Settings,
  sources: dict[str, source.Source],
  poll: Callable[[], None],
) -> None:
  """Raises ConfigError if a picture would now be prepared otherwise than by earlier versions."""
  if text := earlier.otherwise(tuple(sources.values()), poll):
    raise errors.ConfigError(
      f'--out={settings.out} was begun by an earlier version of gdistill, and is not continued: '
      f'{text}; set --out to another folder, {settings.out} stays as it is: '
      'see "When data change" in docs/data.md'
    )


def _clean(settings: prepare_settings.Settings) -> None:
  """Removes the temporary files that killed processes left in the output folder.

  Temporary files of the lock file are removed only if they are more than a minute old, because
  younger files may belong to the lock that this process holds.
  """
  for at in {settings.out, *(os.path.join(settings.out, s) for s in settings.splits)}:
    with contextlib.suppress(FileNotFoundError):
      for name in os.listdir(at):
        file = os.path.join(at, name)
        old = name.startswith('.tmp-') and time.time() - os.stat(file).st_mtime > 60
        if old or name.startswith(files.TEMPORARY) or name == CORRUPT:
          os.unlink(file)


def clean(settings: prepare_settings.Settings) -> None:
  """Removes the temporary file to which the pictures of an archive were unpacked."""
  with contextlib.suppress(FileNotFoundError):
    os.unlink(os.path.join(settings.out, _SPOOL))


def _check_disk(job: Job) -> None:
  """Raises ConfigError if the disk of --out has too little free space for the missing shards."""
  height, width, channels = job.settings.shape
  missing = [s.last - s.first for s in job.shards if not s.done]
  need = sum(n * (height * width * channels + 128) + 2**18 for n in missing)
  free = shutil.disk_usage(job.settings.out).free
  if need > free:
    raise errors.ConfigError(
      f'--out={job.settings.out} needs {need / 2**30:.2f} GiB more and {free / 2**30:.2f} are '
      'free; free disk space, or set --out to a folder on a larger disk'
    )
