"""Writes the cache of latents: encodes pictures and captions once, into shards for training.

The shards are ArrayRecord files: some hold the latents of every picture and of the picture's mirror
image in bfloat16, others hold the embeddings of the distinct captions. A JSON file beside every
shard says what the shard was made from. The last file written is index.json, which lists the shards
and has the hashes of the encoders.

Several processes can each write a part of the shards. An interrupted job resumes with the shards
that are missing. data/latent_encoding.py makes the records, and data/latents.py reads the cache.
"""

import contextlib
import dataclasses
import json
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gdistill import errors
from gdistill.data import files
from gdistill.data import latent_encoding
from gdistill.data import latents as stored
from gdistill.data import records
from gdistill.data import source
from gdistill.recipe import class_names

# Names that a cache folder may hold: shards, index, the writer's lock, hidden and system files.
_KNOWN = re.compile(
  rf'(latents|texts)-\d{{5,}}\.(array_record|json)|{records.INDEX}|lock\.json|\..*|lost\+found'
)
# Maps a field of the cache to words for the error line if the field differs from this run's.
_DIFFERENCES = {
  'examples': 'other pictures',
  'size': 'pictures of another size',
  'encoder': 'another autoencoder',
  'shape': 'another shape',
  'text_encoder': 'another text encoder',
  'captions': 'other captions',
  'shard_size': 'another latents.shard_size',
  'masks': 'another number of masks',
}


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings for encoding a split into a cache of latents.

  `processes` processes divide the shards among themselves; `process` is the number of this process.
  """

  out: str  # path of the cache folder
  batch_size: int = 64
  shard_size: int = 1024
  skip_corrupt: bool = False  # True: unreadable pictures are left out; False: DataError
  process: int = 0
  processes: int = 1


@dataclasses.dataclass(frozen=True)
class _Shard:
  """A shard file with the pictures or the distinct captions number `first` to `last` - 1."""

  kind: str  # kind of the shard: 'latents' or 'texts'
  number: int
  first: int
  last: int
  key: str  # fingerprint of the examples, encoders and settings that the shard is made from

  @property
  def name(self) -> str:
    return f'{self.kind}-{self.number:05d}.array_record'


class Job:
  """The job of encoding a split: `work` writes this process's shards, `finish` writes the index.

  `captions` has one caption for every example, or is empty if `texts` is None. Equal captions are
  embedded only once.
  """

  def __init__(
    self,
    settings: Settings,
    examples: source.Source,
    encoder: latent_encoding.Encoder,
    texts: latent_encoding.Texts | None = None,
    captions: Sequence[str] = (),
  ):
    self.settings, self._examples, self._encoder, self._texts = settings, examples, encoder, texts
    self._encoding = latent_encoding.Encoding(
      examples, encoder, texts, captions, settings.batch_size, settings.skip_corrupt
    )
    self._made_from = {
      'size': list(examples.shape),
      'examples': examples.fingerprint,
      'encoder': encoder.digest,
      'shape': list(encoder.shape),
      'text_encoder': texts.digest if texts else '',
      'captions': source.fingerprint(captions) if texts else '',
      'shard_size': settings.shard_size,
      # If the encoder makes no masks, the field `masks` is left out, so that caches from before
      # that field existed stay valid.
      **({'masks': encoder.masks} if encoder.masks else {}),
    }
    self._shards = self._plan()
    self._mine = self._shards[settings.process :: settings.processes]

  @property
  def total(self) -> int:
    """Returns the number of pictures and distinct captions in this process's shards."""
    return sum(s.last - s.first for s in self._mine)

  @property
  def done(self) -> int:
    """Returns how many of this process's pictures and captions lie in shards already written."""
    return sum(s.last - s.first for s in self._mine if self._description(s))

  @property
  def finished(self) -> bool:
    """Returns whether index.json is of this job and every shard has the size in its JSON file."""
    index = _json(os.path.join(self.settings.out, records.INDEX))
    whole = index is not None and all(self._description(s) for s in self._shards)
    return whole and index.get('digest') == records.digest(index) == self._index()['digest']

  def check(self) -> None:
    """Raises DataError if the folder holds latents of another job, or files of no latent cache.

    Latents are of another job if the pictures, captions, encoders, shapes, shard size or number of
    masks in a JSON file of the folder differ from this job's.
    """
    out = self.settings.out
    for name in sorted(os.listdir(out)) if os.path.isdir(out) else ():
      file = os.path.join(out, name)
      if not _KNOWN.fullmatch(name):
        raise errors.DataError(
          f'{out} holds {name}, which does not belong to a cache of latents; set latents.cache '
          'to an empty or a new folder'
        )
      found = _json(file) if name.endswith('.json') and name != 'lock.json' else None
      if found is None:
        continue  # a damaged JSON file is allowed, because `work` and `finish` replace it
      if name == records.INDEX and found.get('format') != stored.FORMAT:
        raise errors.DataError(
          f'{file} is of format {str(found.get("format"))[:40]!r} and not {stored.FORMAT!r}: the '
          'folder holds no latents; set latents.cache to another folder'
        )
      self._check_names(file, found)
      for field, mine in {'masks': 0, **self._made_from}.items():
        theirs = found.get(field, 0 if field == 'masks' else mine)
        if theirs != mine:
          changed = self._changed(found) if field in ('examples', 'captions') else ''
          raise errors.DataError(
            f'{out} holds latents of {_DIFFERENCES[field]} ({str(theirs)[:80] or "none"}) than '
            f"this run's ({mine or 'none'}), according to {name}"
            f'{f": {changed}" if changed else ""}; set latents.cache to another folder, or remove '
            f'{out}'
          )

  def _changed(self, found: Mapping[str, Any]) -> str:
    """Returns what earlier versions read otherwise, for an error line about a JSON file's `found`.

    The file does not say which version wrote it, unless it has the fingerprint of earlier versions.
    """
    changed, before = self._examples.changed, ''
    if source.can_be_before(self._examples.read):
      before = self._examples.before().fingerprint
    if not changed or found.get('examples') == before:
      return changed
    return f'if an earlier version of gdistill made these latents, the reason may be that {changed}'

  def _check_names(self, file: str, index: Mapping[str, Any]) -> None:
    """Raises DataError if the content `index` of `file` lists other classes than the pictures."""
    names = index.get('class_names')
    if isinstance(names, list) and all(isinstance(n, str) for n in names):
      odd = class_names.difference(names, self._examples.class_names, ('the cache', 'the data'))
      if odd:
        raise errors.DataError(
          f'{file} lists other classes than the data: {odd}; set latents.cache to another folder, '
          f'or remove {self.settings.out}'
        )

  def clean(self) -> None:
    """Removes temporary files of killed processes; must run while no process writes."""
    for name in os.listdir(self.settings.out):
      if name.startswith(files.TEMPORARY):
        os.unlink(os.path.join(self.settings.out, name))

  def work(self, poll: Callable[[], None], update: Callable[[int], None]) -> tuple[int, int]:
    """Writes this process's missing or damaged shards; returns (shards, pictures) written.

    The returned numbers count the written shards and the pictures of the written shards, unreadable
    pictures included. `poll()` is called between batches and may raise an exception to stop the
    job; finished shards are kept. `update(done)` is called after each shard with the number of
    finished pictures and captions of this process.
    """
    os.makedirs(self.settings.out, exist_ok=True)
    missing = [s for s in self._mine if not self._intact(s)]
    done, encoded = self.total - sum(s.last - s.first for s in missing), 0
    for shard in missing:
      # index.json is removed before a shard is written, because index.json lists only intact
      # shards.
      with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(self.settings.out, records.INDEX))
      encode = self._encoding.latents if shard.kind == 'latents' else self._encoding.embeddings
      self._write(shard, encode(shard.number, shard.first, shard.last, poll))
      done += shard.last - shard.first
      encoded += (shard.last - shard.first) * (shard.kind == 'latents')
      update(done)
    return len(missing), encoded

  def finish(self) -> dict[str, Any]:
    """Writes index.json and returns the contents of index.json.

    Raises DataError if a shard is missing, or if no shard holds a picture.
    """
    index = self._index()
    files.write(os.path.join(self.settings.out, records.INDEX), files.dumps(index))
    return index

  def _index(self) -> dict[str, Any]:
    found = {s: self._description(s) for s in self._shards}
    for shard, description in found.items():
      if description is None:
        raise errors.DataError(
          f'{os.path.join(self.settings.out, shard.name)} is missing; run `gdistill encode` again '
          'in every process that shared the work, with one cache folder that all of them can read'
        )
    latents, texts = ({s: d for s, d in found.items() if s.kind == k} for k in ('latents', 'texts'))

    def listed(shards):
      keep = ('count', 'bytes', 'sha256')
      return [{'name': s.name, **{k: d[k] for k in keep}} for s, d in shards.items()]

    text, count = self._texts, sum(d['count'] for d in latents.values())
    if not count:
      why = (
        'because of latents.skip_corrupt=True; set latents.skip_corrupt=False to see why a picture '
        'cannot be read'
        if self.settings.skip_corrupt
        else 'because the pictures are below a quarter of the side that the autoencoder reads; '
        'give larger pictures'
      )
      raise errors.DataError(
        f'no picture can be encoded: all {len(self._examples):,} examples were left out, {why}, '
        'and check data.path and data.dataset'
      )
    self._check_classes(latents)
    index = {
      'format': stored.FORMAT,
      'version': records.VERSION,
      'count': count,
      'left_out': len(self._examples) - count,
      'class_names': list(self._examples.class_names),
      'shards': listed(latents),
      'text_shards': listed(texts),
      'posterior': self._encoder.posterior,
      'text': text and {'length': text.length, 'width': text.width},
      **self._made_from,
    }
    index['digest'] = records.digest(index)
    return index

  def _check_classes(self, latents: dict[_Shard, dict[str, Any]]) -> None:
    """Raises DataError if all pictures of a class were left out; only shards that lack pictures are
    read.
    """
    lacking = [s for s, d in latents.items() if d['count'] < s.last - s.first]
    reader = source.innermost(self._examples)
    if not lacking or not (hasattr(reader, 'labels') or hasattr(reader, 'label')):
      return
    known, classes = source.labels(self._examples), self._examples.class_names
    left = np.bincount(known, minlength=len(classes))
    before = left.copy()
    shards = [(s.name, latents[s]['count']) for s in lacking]
    kept = stored.labels(self.settings.out, shards)
    for shard in lacking:
      left -= np.bincount(known[shard.first : shard.last], minlength=len(classes))
    left += np.bincount(kept, minlength=len(classes))
    empty = [classes[k] for k in np.flatnonzero((left == 0) & (before > 0))]
    if empty:
      corrupt = self.settings.skip_corrupt
      raise errors.DataError(
        f'{"latents.skip_corrupt=True leaves" if corrupt else "the limit of enlargement leaves"} '
        f'out all pictures of the class {empty[0]!r}'
        f'{f" and of {len(empty) - 1:,} more" if empty[1:] else ""}, so training would miss '
        f'this class; add {"readable" if corrupt else "larger"} pictures of this class, or remove '
        'the class'
      )

  def _plan(self) -> list[_Shard]:
    made_from = [str(value) for value in self._made_from.values()]
    size, shards = self.settings.shard_size, []
    for kind, count in (('latents', len(self._examples)), ('texts', len(self._encoding.distinct))):
      for number, first in enumerate(range(0, count, size)):
        last = min(first + size, count)
        key = source.fingerprint([*made_from, kind, str(first), str(last)])
        shards.append(_Shard(kind, number, first, last, key))
    return shards

  def _write(self, shard: _Shard, made: Iterator[bytes]) -> None:
    """Writes a shard file, then the JSON file that describes the shard, each by atomic rename."""
    from array_record.python import array_record_module  # lazy import: array_record loads slowly

    out = self.settings.out
    temporary = os.path.join(out, f'{files.TEMPORARY}{secrets.token_hex(8)}')
    count = 0
    try:
      with _writing(out):
        writer = array_record_module.ArrayRecordWriter(temporary, records.WRITER)
      # The encoders run in the iterator `made`. Iterating is outside `_writing`, because `_writing`
      # would report an error of an encoder as an error of the disk.
      for data in made:
        with _writing(out):
          writer.write(data)
        count += 1
      with _writing(out):
        writer.close()
        description = {
          'key': shard.key, 'count': count, 'bytes': os.path.getsize(temporary),
          'sha256': files.sha256(temporary), **self._made_from,
        }  # fmt: skip
        files.publish(temporary, os.path.join(out, shard.name))
        description['digest'] = records.digest(description)
        files.write(self._json_of(shard), files.dumps(description))
    finally:
      with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)

  def _json_of(self, shard: _Shard) -> str:
    return os.path.join(self.settings.out, shard.name.replace('.array_record', '.json'))

  def _description(self, shard: _Shard) -> dict[str, Any] | None:
    """Returns the contents of the JSON file beside a shard.

    Returns None if the JSON file is missing, damaged or written by another job, or if the shard
    file is missing or has another size than the JSON file says.
    """
    found = _json(self._json_of(shard)) or {}
    if found.get('key') != shard.key or found.get('digest') != records.digest(found):
      return None
    try:
      size = os.path.getsize(os.path.join(self.settings.out, shard.name))
    except OSError:
      return None
    return found if found['bytes'] == size else None

  def _intact(self, shard: _Shard) -> bool:
    """Returns whether the sha256 of the shard file is the sha256 in the shard's JSON file."""
    found = self._description(shard)
    file = os.path.join(self.settings.out, shard.name)
    return bool(found) and found['sha256'] == files.sha256(file)


def recorded_examples(folder: str) -> str:
  """Returns the fingerprint of the pictures whose latents are in `folder`, or '' if none are."""
  names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
  found = (_json(os.path.join(folder, n)) for n in names if n.startswith('latents-')
           and n.endswith('.json'))  # fmt: skip
  return next((str(f['examples']) for f in found if f and 'examples' in f), '')


def _json(file: str) -> dict[str, Any] | None:
  """Returns the dict in a JSON file, or None if the file is missing or damaged."""
  try:
    with open(file, 'rb') as f:
      found = json.load(f)
  except (OSError, ValueError, RecursionError):
    return None
  return found if isinstance(found, dict) else None


@contextlib.contextmanager
def _writing(out: str) -> Iterator[None]:
  """Turns an error from writing a shard into a DataError that names the cache folder `out`."""
  try:
    yield
  except (OSError, RuntimeError) as e:  # array_record raises RuntimeError on a full disk
    raise files.unwritable(out, e) from e
