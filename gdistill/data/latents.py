"""Latents of pictures and embeddings of captions, made once: resumable, shared out, checked.

A folder of a split holds ArrayRecord files of latents, of both flips and in bfloat16, others of the
embeddings of its distinct captions, and index.json, written last, which says what encoded them.
The encoders come in as functions: nothing here knows a network.
"""

import contextlib
import dataclasses
import json
import os
import re
import secrets
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from gdistill import errors
from gdistill.data import files
from gdistill.data import records
from gdistill.data import source

FORMAT = 'gdistill-latents'
COMMAND = 'gdistill encode'
_HEADER = struct.Struct('<IIIII')  # crc32 of all that follows; shard, place in it; label; caption
_TEXT = struct.Struct('<III')  # crc32 of all that follows; shard, place in it
_IN_MEMORY = 2**29  # bytes below which everything is read once and kept
_BF16 = ml_dtypes.bfloat16
# What a folder of latents may hold: the lock of who writes it, and what systems leave about.
_OURS = re.compile(
  rf'(latents|texts)-\d{{5,}}\.(array_record|json)|{records.INDEX}|lock\.json|\..*|lost\+found'
)


@dataclasses.dataclass(frozen=True, eq=False)
class Encoder:
  """`encode(pixels [B, H, W, 3] uint8)` is the posterior (mean, deviation), each [B, h, w, c].

  Without a `posterior` the deviation is zero and not kept. `digest` names parameters and scale.
  For inpainting each flip is also kept in `masks` ways: `masked(pixels, numbers [B])` is the mask
  of each number and the latent of the picture without what it covers, [B, h, w, 1 + c].
  """

  encode: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
  shape: tuple[int, int, int]
  posterior: bool
  digest: str
  masks: int = 0
  masked: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Texts:
  """`encode(captions)` is (embeddings [n, length, width], mask [n, length] of what is a token)."""

  encode: Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]]
  length: int
  width: int
  digest: str


@dataclasses.dataclass(frozen=True)
class Settings:
  """How a split is encoded, and which part of it is this process's."""

  out: str  # the folder of the split
  batch_size: int = 64
  shard_size: int = 1024
  skip_corrupt: bool = False  # leaves out pictures that cannot be read, in place of DataError
  process: int = 0
  processes: int = 1


@dataclasses.dataclass(frozen=True)
class _Shard:
  kind: str  # 'latents' or 'texts'
  number: int
  first: int
  last: int
  key: str  # of what it is made from

  @property
  def name(self) -> str:
    return f'{self.kind}-{self.number:05d}.array_record'


class Job:
  """A split to encode: `work` makes this process's shards, `finish` the index of all of them."""

  def __init__(
    self,
    settings: Settings,
    examples: source.Source,
    encoder: Encoder,
    texts: Texts | None = None,
    captions: Sequence[str] = (),
  ):
    self.settings, self._examples, self._encoder, self._texts = settings, examples, encoder, texts
    self._distinct = list(dict.fromkeys(captions)) if texts else []
    numbers = {caption: i for i, caption in enumerate(self._distinct)}
    self._numbers = np.array([numbers[c] for c in captions] if texts else [0] * len(examples))
    self._made_from = {
      'size': list(examples.shape),
      'examples': examples.fingerprint,
      'encoder': encoder.digest,
      'shape': list(encoder.shape),
      'text_encoder': texts.digest if texts else '',
      'captions': source.fingerprint(captions) if texts else '',
      'shard_size': settings.shard_size,
      # of caches without masks nothing is said
      **({'masks': encoder.masks} if encoder.masks else {}),
    }
    self._shards = self._plan()
    self._mine = self._shards[settings.process :: settings.processes]

  @property
  def total(self) -> int:
    """Pictures and captions of this process's shards."""
    return sum(s.last - s.first for s in self._mine)

  @property
  def done(self) -> int:
    """Those in shards that were made before."""
    return sum(s.last - s.first for s in self._mine if self._said(s))

  @property
  def finished(self) -> bool:
    """Whether the index is there, and every shard with as many bytes as it should have."""
    index = _json(os.path.join(self.settings.out, records.INDEX))
    whole = index is not None and all(self._said(s) for s in self._shards)
    return whole and index.get('digest') == records.digest(index) == self._index()['digest']

  def check(self) -> None:
    """DataError where the folder holds what is no latents, or was made of anything else."""
    out = self.settings.out
    for name in sorted(os.listdir(out)) if os.path.isdir(out) else ():
      file = os.path.join(out, name)
      if not _OURS.fullmatch(name):
        raise errors.DataError(f'{out} holds {name}, which is nothing of latents; name another')
      found = _json(file) if name.endswith('.json') and name != 'lock.json' else None
      if found is None:
        continue  # what is damaged is made again
      if name == records.INDEX and found.get('format') != FORMAT:
        raise errors.DataError(
          f'{file} is of format {str(found.get("format"))[:40]!r} and not {FORMAT!r}: the folder '
          'holds no latents; name another'
        )
      for what, mine in {'masks': 0, **self._made_from}.items():
        theirs = found.get(what, 0 if what == 'masks' else mine)
        if theirs != mine:
          raise errors.DataError(
            f'{out} holds latents of {_OTHER[what]} ({str(theirs)[:80] or "none"}) than this one '
            f'({mine or "none"}), says {name}; name another latents.cache, or remove that folder'
          )

  def clean(self) -> None:
    """Removes what killed processes left; to be called while no process of the job writes."""
    for name in os.listdir(self.settings.out):
      if name.startswith(files.TEMPORARY):
        os.unlink(os.path.join(self.settings.out, name))

  def work(self, look: Callable[[], None], update: Callable[[int], None]) -> tuple[int, int]:
    """Makes what is missing of this process's shards; (shards it made, pictures in them).

    `look` is called between batches and may raise: whole shards stay. `update` is told how many
    pictures and captions are done.
    """
    os.makedirs(self.settings.out, exist_ok=True)
    missing = [s for s in self._mine if not self._whole(s)]
    done, encoded = self.total - sum(s.last - s.first for s in missing), 0
    for shard in missing:
      with contextlib.suppress(FileNotFoundError):  # an index speaks of whole shards only
        os.unlink(os.path.join(self.settings.out, records.INDEX))
      made = (
        self._latents(shard, look) if shard.kind == 'latents' else self._embeddings(shard, look)
      )
      self._write(shard, made)
      done += shard.last - shard.first
      encoded += (shard.last - shard.first) * (shard.kind == 'latents')
      update(done)
    return len(missing), encoded

  def finish(self) -> dict[str, Any]:
    """Writes the index; DataError names a shard that is missing."""
    index = self._index()
    files.write(os.path.join(self.settings.out, records.INDEX), files.dumps(index))
    return index

  def _index(self) -> dict[str, Any]:
    said = {s: self._said(s) for s in self._shards}
    for shard, words in said.items():
      if words is None:
        raise errors.DataError(
          f'{os.path.join(self.settings.out, shard.name)} is missing; repeat the command on every '
          'process that shared the work, with one disk for all of them'
        )
    latents, texts = ({s: w for s, w in said.items() if s.kind == k} for k in ('latents', 'texts'))

    def listed(shards):
      keep = ('count', 'bytes', 'sha256')
      return [{'name': s.name, **{k: w[k] for k in keep}} for s, w in shards.items()]

    text, count = self._texts, sum(w['count'] for w in latents.values())
    if not count:
      raise errors.DataError('no picture can be read; nothing is left to train on')
    index = {
      'format': FORMAT,
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

  def _plan(self) -> list[_Shard]:
    made_from = [str(value) for value in self._made_from.values()]
    size, shards = self.settings.shard_size, []
    for kind, count in (('latents', len(self._examples)), ('texts', len(self._distinct))):
      for number, first in enumerate(range(0, count, size)):
        last = min(first + size, count)
        key = source.fingerprint([*made_from, kind, str(first), str(last)])
        shards.append(_Shard(kind, number, first, last, key))
    return shards

  def _latents(self, shard: _Shard, look: Callable[[], None]) -> Iterator[bytes]:
    """The record of every example of the shard."""
    written = 0
    for index, pixels, labels in self._pictures(shard):
      look()
      views = [self._encode(a) for a in (pixels, pixels[:, :, ::-1])]
      latents = np.stack(views, axis=1).astype(_BF16)  # [B, flip, mean and deviation, h, w, c]
      _check_finite(latents, index)
      masked = self._masked(index, pixels)
      for i, one, more, label in zip(index, latents, masked, labels, strict=True):
        head = (shard.number, written, label, int(self._numbers[i]))
        yield _sealed(_HEADER, head, np.concatenate([one.reshape(-1), more.reshape(-1)]))
        written += 1

  def _masked(self, index: tuple, pixels: np.ndarray) -> np.ndarray:
    """[B, flip, masks, h, w, 1 + c] of a batch."""
    count, (h, w, c) = self._encoder.masks, self._encoder.shape
    out = np.zeros((len(pixels), 2, count, h, w, 1 + c), _BF16)
    if not count:
      return out
    size = self.settings.batch_size
    for flip, view in enumerate((pixels, pixels[:, :, ::-1])):
      full = np.resize(view, (size, *view.shape[1:]))
      for k in range(count):
        numbers = np.resize((np.array(index) * 2 + flip) * count + k, size).astype(np.uint32)
        out[:, flip, k] = np.asarray(self._encoder.masked(full, numbers))[: len(pixels)]
    _check_finite(out, index)
    return out

  def _pictures(self, shard: _Shard) -> Iterator[tuple[tuple, np.ndarray, tuple]]:
    """(index, pixels [b, H, W, 3], labels) of the shard's examples, read ahead by threads."""

    def read(i):
      try:
        return shard.first + i, *self._examples[shard.first + i]
      except errors.DataError as e:
        if self.settings.skip_corrupt:
          return None
        raise errors.DataError(
          f'{e}; what is encoded stays if you set latents.skip_corrupt=True, which leaves it out'
        ) from e

    for _, found in source.ahead(read, shard.last - shard.first, self.settings.batch_size):
      if whole := [f for f in found if f is not None]:
        index, pixels, labels = zip(*whole, strict=True)
        yield index, np.stack(pixels), labels

  def _encode(self, pixels: np.ndarray) -> np.ndarray:
    """[B, 2 or 1, h, w, c], in batches of one size: the program is compiled once."""
    full = np.resize(pixels, (self.settings.batch_size, *pixels.shape[1:]))
    mean, std = self._encoder.encode(full)
    parts = (mean, std) if self._encoder.posterior else (mean,)
    return np.stack([np.asarray(a) for a in parts], axis=1)[: len(pixels)]

  def _embeddings(self, shard: _Shard, look: Callable[[], None]) -> Iterator[bytes]:
    for first in range(shard.first, shard.last, self.settings.batch_size):
      look()
      captions = self._distinct[first : min(first + self.settings.batch_size, shard.last)]
      padded = captions + [''] * (self.settings.batch_size - len(captions))
      hidden, mask = (np.asarray(a)[: len(captions)] for a in self._texts.encode(padded))
      for i, (one, used) in enumerate(zip(hidden.astype(_BF16), mask, strict=True)):
        body = np.concatenate([used.astype(np.uint8), one.reshape(-1).view(np.uint8)])
        yield _sealed(_TEXT, (shard.number, first - shard.first + i), body)

  def _write(self, shard: _Shard, made: Iterator[bytes]) -> None:
    from array_record.python import array_record_module  # heavy

    out = self.settings.out
    temporary = os.path.join(out, f'{files.TEMPORARY}{secrets.token_hex(8)}')
    count = 0
    try:
      with _writing(out):
        writer = array_record_module.ArrayRecordWriter(temporary, records.WRITER)
      for data in made:  # whose own errors are none of writing
        with _writing(out):
          writer.write(data)
        count += 1
      with _writing(out):
        writer.close()
        said = {
          'key': shard.key, 'count': count, 'bytes': os.path.getsize(temporary),
          'sha256': files.sha256(temporary), **self._made_from,
        }  # fmt: skip
        files.publish(temporary, os.path.join(out, shard.name))
        files.write(self._words(shard), files.dumps({**said, 'digest': records.digest(said)}))
    finally:
      with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)

  def _words(self, shard: _Shard) -> str:
    return os.path.join(self.settings.out, shard.name.replace('.array_record', '.json'))

  def _said(self, shard: _Shard) -> dict[str, Any] | None:
    """What the shard's JSON says of it, if it was made from the same and its file is there."""
    said = _json(self._words(shard)) or {}
    if said.get('key') != shard.key or said.get('digest') != records.digest(said):
      return None
    try:
      size = os.path.getsize(os.path.join(self.settings.out, shard.name))
    except OSError:
      return None
    return said if said['bytes'] == size else None

  def _whole(self, shard: _Shard) -> bool:
    said = self._said(shard)
    return bool(said) and said['sha256'] == files.sha256(
      os.path.join(self.settings.out, shard.name)
    )


_OTHER = {
  'examples': 'other pictures',
  'size': 'pictures of another size',
  'encoder': 'another autoencoder',
  'shape': 'another shape',
  'text_encoder': 'another text encoder',
  'captions': 'other captions',
  'shard_size': 'another latents.shard_size',
  'masks': 'another number of masks',
}


def _check_finite(latents: np.ndarray, index: tuple) -> None:
  if not np.isfinite(latents.astype(np.float32)).all():
    raise errors.DataError(
      f'the latents of examples {index[0]} to {index[-1]} are not finite; check the autoencoder'
    )


def _json(file: str) -> dict[str, Any] | None:
  """What a file holds, None where it is not there or damaged."""
  try:
    with open(file, 'rb') as f:
      found = json.load(f)
  except (OSError, ValueError, RecursionError):
    return None
  return found if isinstance(found, dict) else None


@contextlib.contextmanager
def _writing(out: str) -> Iterator[None]:
  try:
    yield
  except (OSError, RuntimeError) as e:  # RuntimeError: array_record's, when the disk is full
    reason = errors.brief(e)
    raise errors.DataError(f'{out} cannot be written: {reason}; free space') from e


def _sealed(header: struct.Struct, values: tuple[int, ...], body: np.ndarray) -> bytes:
  rest = header.pack(0, *values)[4:] + np.ascontiguousarray(body).tobytes()
  return zlib.crc32(rest).to_bytes(4, 'little') + rest


# ---- reading


@dataclasses.dataclass(frozen=True, eq=False)
class Latents:
  """A split as training reads it, with the interface of source.Source that batches need.

  `shape` is that of one latent; an example has as many as flips and posterior make.
  """

  index: dict[str, Any]
  # example -> (latents, masked ones, label, caption)
  read: Callable[[int], tuple[np.ndarray, np.ndarray, int, int]]
  text: Callable[[int], tuple[np.ndarray, np.ndarray]] | None  # caption -> (embedding, mask)
  in_memory: bool
  heavy = False  # `read` holds places, no records, unless they are in memory

  def __len__(self) -> int:
    return self.index['count']

  @property
  def shape(self) -> tuple[int, int, int]:
    return tuple(self.index['shape'])

  @property
  def class_names(self) -> tuple[str, ...]:
    return tuple(self.index['class_names'])

  @property
  def views(self) -> tuple[int, int]:
    """(flips, parts) ahead of the shape of an example: two flips; mean, or mean and deviation."""
    return 2, 1 + self.index['posterior']

  @property
  def fields(self) -> dict[str, tuple[tuple[int, ...], Any]]:
    """{name: (shape, dtype)} of an example as `gather` returns it."""
    found = {'latents': ((*self.views, *self.shape), _BF16), 'label': ((), np.int32)}
    if count := self.index.get('masks', 0):
      found['masked'] = _masked_shape(count, self.shape), _BF16
    if text := self.index['text']:
      found['text'] = (text['length'], text['width']), _BF16
      found['text_mask'] = (text['length'],), np.bool_
    return found

  @property
  def fingerprint(self) -> str:
    return self.index['digest'][:16]

  def gather(self, index: Any) -> dict[str, np.ndarray]:
    """{'latents': [B, flips, parts, h, w, c] bfloat16, 'label': [B] int32}; with text also
    'text' [B, length, width] bfloat16 and 'text_mask' [B, length]; for inpainting 'masked'
    [B, flips, masks, h, w, 1 + c] bfloat16.
    """
    latents, masked, labels, captions = zip(*(self.read(int(i)) for i in index), strict=True)
    out = {'latents': np.stack(latents), 'label': np.array(labels, np.int32)}
    if 'masked' in self.fields:
      out['masked'] = np.stack(masked)
    if self.text is not None:
      texts, masks = zip(*(self.text(c) for c in captions), strict=True)
      out |= {'text': np.stack(texts), 'text_mask': np.stack(masks)}
    return out


def load(folder: str, shape: tuple[int, int, int]) -> Latents:
  """The latents of a split's folder; DataError where they are not whole, or of another shape."""
  index = records.read_index(folder, FORMAT, COMMAND, 'latents.cache')
  found = tuple(index['shape'])
  if found != shape:
    raise errors.DataError(
      f'{folder} holds latents of height, width, channels {list(found)}, the model draws '
      f'{list(shape)}; set model.image_size={found[0]} and model.image_channels={found[2]}, or '
      f'name another latents.cache'
    )
  shapes = (2, 1 + index['posterior'], *found), _masked_shape(index.get('masks', 0), found)
  read = _Examples(_shards(folder, index['shards']), *shapes)
  text = index['text']
  text = text and _Texts(_shards(folder, index['text_shards']), text['length'], text['width'])
  small = sum(s['bytes'] for s in (*index['shards'], *index['text_shards'])) <= _IN_MEMORY
  if small:
    read = _Kept([read(i) for i in range(index['count'])])
    if text:
      captions = sum(s['count'] for s in index['text_shards'])
      text = _Kept([text(i) for i in range(captions)])
  return Latents(index, read, text or None, in_memory=small)


def _masked_shape(count: int, shape: tuple[int, int, int]) -> tuple[int, ...]:
  return 2, count, *shape[:2], shape[2] + 1


def _shards(folder: str, listed: Sequence[dict[str, Any]]) -> records.Shards:
  shards = tuple((s['name'], s['count']) for s in listed)
  return records.Shards(folder, shards, COMMAND)


@dataclasses.dataclass(frozen=True, eq=False)
class _Kept:
  values: list

  def __call__(self, i: int) -> Any:
    return self.values[i]


@dataclasses.dataclass(frozen=True, eq=False)
class _Examples:
  """A class, because workers get it pickled."""

  shards: records.Shards
  shape: tuple[int, ...]
  masked: tuple[int, ...]

  def __call__(self, i: int) -> tuple[np.ndarray, np.ndarray, int, int]:
    return self.shards.read(i, self._parse)

  def _parse(self, data: bytes, shard: int, place: int) -> tuple[np.ndarray, np.ndarray, int, int]:
    first, second = int(np.prod(self.shape)), int(np.prod(self.masked))
    label, caption = _opened(_HEADER, data, shard, place, 2 * (first + second))
    values = np.frombuffer(data, _BF16, offset=_HEADER.size)
    return values[:first].reshape(self.shape), values[first:].reshape(self.masked), label, caption


@dataclasses.dataclass(frozen=True, eq=False)
class _Texts:
  shards: records.Shards
  length: int
  width: int

  def __call__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
    return self.shards.read(i, self._parse)

  def _parse(self, data: bytes, shard: int, place: int) -> tuple[np.ndarray, np.ndarray]:
    _opened(_TEXT, data, shard, place, self.length * (1 + 2 * self.width))
    mask = np.frombuffer(data, np.uint8, self.length, _TEXT.size).astype(bool)
    hidden = np.frombuffer(data, _BF16, offset=_TEXT.size + self.length)
    return hidden.reshape(self.length, self.width), mask


def _opened(
  header: struct.Struct, data: bytes, shard: int, place: int, size: int
) -> tuple[int, ...]:
  """What the header says after shard and place; ValueError says what is wrong with the record."""
  if len(data) != header.size + size:
    raise ValueError(f'it has {len(data)} bytes')
  if zlib.crc32(memoryview(data)[4:]) != int.from_bytes(data[:4], 'little'):
    raise ValueError('its checksum is wrong')
  _, found, there, *rest = header.unpack_from(data)
  if (found, there) != (shard, place):
    raise ValueError(f'it is record {there} of shard {found}')
  return tuple(rest)
