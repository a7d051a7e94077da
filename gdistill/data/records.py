"""Prepared pictures: ArrayRecord files and an index.json that says what is in them."""

import dataclasses
import hashlib
import json
import os
import re
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from gdistill import errors
from gdistill.data import source
from gdistill.recipe import settings as recipes

FORMAT, VERSION = 'gdistill-records', 1
INDEX, LABELS = 'index.json', 'labels.int32'
WRITER = 'group_size:1,uncompressed'  # one record a chunk: read at random; pixels hardly compress
# crc32 of all that follows; shard, place in it; label; height, width, channels; then the pixels.
_HEADER = struct.Struct('<IIIIHHH')
_NAME = re.compile(r'[A-Za-z0-9][A-Za-z0-9._-]{0,63}')
_MOST_OPEN = 512  # files at once
_LARGEST_INDEX = 2**28


def load(
  settings: recipes.Data, shape: tuple[int, int, int]
) -> tuple[source.Source, source.Source]:
  """(training, held out) of what `gdistill prepare` wrote to data.path."""
  train = _split(settings, settings.split, shape)
  if settings.held_out:
    return source.held_out(train, settings.held_out)
  held = _split(settings, settings.held_out_split, shape)
  splits = (settings.split, settings.held_out_split)
  source.same_classes(train, held, f'data.path={settings.path}', splits)
  return train, held


def record(pixels: np.ndarray, label: int, shard: int, place: int) -> bytes:
  """An example as the shard holds it at that place."""
  head = _HEADER.pack(0, shard, place, label, *pixels.shape)[4:]
  body = head + np.ascontiguousarray(pixels).tobytes()
  return zlib.crc32(body).to_bytes(4, 'little') + body


def parse(
  data: bytes, shard: int, place: int, shape: tuple[int, int, int]
) -> tuple[np.ndarray, int]:
  """(pixels, label); ValueError says what is wrong with it."""
  if len(data) != _HEADER.size + shape[0] * shape[1] * shape[2]:
    raise ValueError(f'it has {len(data)} bytes')
  if zlib.crc32(memoryview(data)[4:]) != int.from_bytes(data[:4], 'little'):
    raise ValueError('its checksum is wrong')
  _, *where, label, height, width, channels = _HEADER.unpack_from(data)
  if (*where, height, width, channels) != (shard, place, *shape):
    raise ValueError(f'it is record {where[1]} of shard {where[0]}, {height} x {width}')
  return np.frombuffer(data, np.uint8, offset=_HEADER.size).reshape(shape), label


def digest(index: dict[str, Any]) -> str:
  """sha256 of all that the index says, which has the digest of every shard."""
  rest = {k: v for k, v in index.items() if k != 'digest'}
  return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def read_index(
  folder: str,
  kind: str = FORMAT,
  command: str = 'gdistill prepare',
  check: str = 'data.split, data.held_out_split and data.path',
) -> dict[str, Any]:
  """The index of a split, whole and of this version, with every shard there; or DataError.

  `kind` is the format that `command` writes, `check` the settings that say where.
  """
  name = os.path.join(folder, INDEX)
  try:
    with open(name, 'rb') as f:
      text = f.read(_LARGEST_INDEX)
  except OSError as e:
    raise errors.DataError(
      f'{name} cannot be read: {e.strerror}; it is written last: run `{command}` until it is '
      f'done, and check {check}'
    ) from e
  try:
    index = json.loads(text)
    if index['format'] != kind:
      raise ValueError(f'its format is {index["format"]!r}')
    version = index['version']
    if version == VERSION:
      _check(index)
  except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
    reason = f'{type(e).__name__}: {e}'[:160]
    raise errors.DataError(
      f'{name} is damaged: {reason}; copy it again or repeat `{command}`'
    ) from e
  if version != VERSION:
    raise errors.DataError(
      f'{name} has format version {version!r:.20}, this gdistill reads {VERSION}; repeat '
      f'`{command}` into another folder, or use the gdistill that wrote it'
    )
  for shard in (*index['shards'], *index.get('text_shards', ())):
    file = os.path.join(folder, shard['name'])
    try:
      size = os.stat(file).st_size
    except OSError as e:
      raise errors.DataError(f'{file} cannot be read: {e.strerror}; copy it again') from e
    if size != shard['bytes']:
      raise errors.DataError(
        f'{file} has {size:,} bytes, not {shard["bytes"]:,}; copy it again or repeat `{command}`'
      )
  return index


def _check(index: dict[str, Any]) -> None:
  """Raises one of several errors unless every field is there and they agree."""
  if digest(index) != index['digest']:
    raise ValueError('its digest is wrong')
  shape, names, shards = index['shape'], index['class_names'], index['shards']
  if len(shape) != 3 or not all(type(n) is int and 0 < n < 2**16 for n in shape):
    raise ValueError(f'shape {shape}')
  if not names or not all(isinstance(n, str) for n in names):
    raise ValueError('class_names')
  for shard in (*shards, *index.get('text_shards', ())):
    if not _NAME.fullmatch(shard['name']) or type(shard['bytes']) is not int:
      raise ValueError(f'shard {shard["name"]!r}')
    if type(shard['count']) is not int or shard['count'] < 0:
      raise ValueError(f'shard {shard["name"]!r} has count {shard["count"]!r}')
  if index['count'] != sum(s['count'] for s in shards):
    raise ValueError(f'count {index["count"]} is not what the shards hold')


def _split(
  settings: recipes.Data, split: str, shape: tuple[int, int, int]
) -> tuple[source.Source, dict[str, Any]]:
  folder = os.path.join(settings.path, split) if split else settings.path
  index = read_index(folder)
  found = tuple(index['shape'])
  if found != shape:
    raise errors.ShapeError(
      found,
      f'{folder} holds pictures of height, width, channels {list(found)}, the model draws '
      f'{list(shape)}; set model.image_size={found[0]} and model.image_channels={found[2]}, or '
      f'repeat `gdistill prepare` with --size={shape[0]} --channels={shape[2]} into another folder',
    )
  shards = tuple((s['name'], s['count']) for s in index['shards'])
  read = _Read(Shards(folder, shards, 'gdistill prepare'), shape)
  names = tuple(index['class_names'])
  return source.Source(read, index['count'], shape, names, index['digest'][:16])


class Shards:
  """Records by number, from ArrayRecord files that hold so many each.

  Opens a shard when it is first asked for; a copy in another process opens its own. `command` is
  what made them, for errors.
  """

  def __init__(self, folder: str, shards: tuple[tuple[str, int], ...], command: str):
    self.folder, self._shards, self._command = folder, shards, command
    self._first = np.cumsum([0, *(count for _, count in shards)])
    self._readers = {}

  def __reduce__(self):
    return Shards, (self.folder, self._shards, self._command)

  def read(self, i: int, parse: Callable[[bytes, int, int], Any]) -> Any:
    """parse(bytes, shard, place) of record i; DataError names what cannot be read."""
    shard = int(np.searchsorted(self._first, i, 'right')) - 1
    place = int(i - self._first[shard])
    try:
      return parse(self._reader(shard).read([place])[0], shard, place)
    except Exception as e:  # array_record raises RuntimeError, and IndexError when closed
      name = os.path.join(self.folder, self._shards[shard][0])
      reason = errors.brief(e)
      raise errors.DataError(
        f'record {place} of {name} cannot be read: {reason}; copy the file again, or remove it and '
        f'repeat `{self._command}`'
      ) from e

  def _reader(self, shard: int) -> Any:
    found = self._readers.get(shard)
    if found is None:  # two threads may both open it; the last one is kept
      from array_record.python import array_record_module  # heavy

      name, count = self._shards[shard]
      found = array_record_module.ArrayRecordReader(
        os.path.join(self.folder, name),
        'readahead_buffer_size:0,max_parallelism:0',  # for reading at random
        file_reader_buffer_size=2**15,
      )
      if not found.ok():
        found.read([0])  # raises, and says why
      if found.num_records() != count:
        raise ValueError(f'the file has {found.num_records()} records, not {count}')
      for old in list(self._readers)[: max(0, len(self._readers) + 1 - _MOST_OPEN)]:
        self._readers.pop(old, None)  # closed when nobody reads from it any more
      self._readers[shard] = found
    return found


@dataclasses.dataclass(frozen=True, eq=False)
class _Read:
  """A class, because workers get it pickled."""

  shards: Shards
  shape: tuple[int, int, int]

  @property
  def labels(self) -> np.ndarray:
    return _labels(self.shards.folder, read_index(self.shards.folder))

  def __call__(self, i: int) -> tuple[np.ndarray, int]:
    return self.shards.read(i, lambda data, shard, place: parse(data, shard, place, self.shape))


def _labels(folder: str, index: dict[str, Any]) -> np.ndarray:
  """[count] the label of every record."""
  name = os.path.join(folder, LABELS)
  try:
    with open(name, 'rb') as f:
      data = f.read(4 * index['count'] + 1)
  except OSError as e:
    raise errors.DataError(f'{name} cannot be read: {e.strerror}; copy it again') from e
  if hashlib.sha256(data).hexdigest() != index.get('labels'):
    raise errors.DataError(f'{name} is damaged; copy it again or prepare the data set again')
  return np.frombuffer(data, '<i4')
