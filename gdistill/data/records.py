"""Reads and checks ArrayRecord shards and their index.json; loads prepared pictures from them."""

import dataclasses
import hashlib
import json
import math
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
# Options of ArrayRecord's writer: one record a chunk, so that random reads are cheap; and no
# compression, because pixels hardly compress.
WRITER = 'group_size:1,uncompressed'
# Header of a picture's record, before the pixels: crc32, shard, place in the shard, label, height,
# width, channels.
_HEADER = struct.Struct('<IIIIHHH')
_NAME = re.compile(r'[A-Za-z0-9][A-Za-z0-9._-]{0,63}')
_MOST_OPEN = 512  # largest number of shard files open at the same time
_LARGEST_INDEX = 2**28  # largest number of bytes read from an index.json


def load(
  settings: recipes.Data, shape: tuple[int, int, int]
) -> tuple[source.Source, source.Source]:
  """Returns (training, held out), the two data sets that `gdistill prepare` wrote to data.path."""
  train = _split(settings, settings.split, shape)
  if settings.held_out:
    return source.held_out(train, settings.held_out)
  held = _split(settings, settings.held_out_split, shape)
  splits = (settings.split, settings.held_out_split)
  source.same_classes(train, held, f'data.path={settings.path}', splits)
  return train, held


def record(pixels: np.ndarray, label: int, shard: int, place: int) -> bytes:
  """Returns the record of pixels uint8 [H, W, C] and a label, for position `place` of a shard."""
  return sealed(_HEADER, (shard, place, label, *pixels.shape), pixels)


def parse(
  data: bytes, shard: int, place: int, shape: tuple[int, int, int]
) -> tuple[np.ndarray, int]:
  """Returns (pixels, label) of the record at position `place` of shard number `shard`.

  Raises ValueError if the record is damaged, misplaced or has another shape than `shape`.
  """
  label, *size = opened(_HEADER, data, shard, place, math.prod(shape))
  if tuple(size) != tuple(shape):
    raise ValueError(f'its picture is {size[0]} x {size[1]} x {size[2]}, not {shape}')
  return np.frombuffer(data, np.uint8, offset=_HEADER.size).reshape(shape), label


def sealed(header: struct.Struct, values: tuple[int, ...], body: np.ndarray) -> bytes:
  """Returns the bytes of a record: crc32, then `values` packed by `header`, then `body`.

  The crc32 covers all bytes of the record after the crc32. The first two of `values` are the number
  of the shard and the record's position in the shard.
  """
  rest = header.pack(0, *values)[4:] + np.ascontiguousarray(body).tobytes()
  return zlib.crc32(rest).to_bytes(4, 'little') + rest


def opened(
  header: struct.Struct, data: bytes, shard: int, place: int, size: int
) -> tuple[int, ...]:
  """Checks a record whose body has `size` bytes; returns the header's values after shard and place.

  Raises ValueError if the record is damaged, or if the record's header holds another shard number
  or position than `shard` and `place`.
  """
  if len(data) != header.size + size:
    raise ValueError(f'the record has {len(data)} bytes, not {header.size + size}')
  if zlib.crc32(memoryview(data)[4:]) != int.from_bytes(data[:4], 'little'):
    raise ValueError('the checksum of the record is wrong')
  _, found, there, *rest = header.unpack_from(data)
  if (found, there) != (shard, place):
    raise ValueError(f'it is record {there} of shard {found}, not {place} of {shard}')
  return tuple(rest)


def digest(index: dict[str, Any]) -> str:
  """Returns the sha256 of the JSON of an index or of a shard, without the field 'digest'.

  The digest of an index depends on the bytes of all shard files, because an index holds the sha256
  of every shard file.
  """
  rest = {k: v for k, v in index.items() if k != 'digest'}
  return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def read_index(
  folder: str,
  kind: str = FORMAT,
  command: str = 'gdistill prepare',
  check: str = 'data.split, data.held_out_split and data.path',
) -> dict[str, Any]:
  """Returns the contents of the index.json in a folder of shards, after checking the shard files.

  Raises DataError if the index is missing, damaged or of another version, or if a shard file is
  missing or has another size than the index says. `kind` is the expected value of the index's field
  'format'. Error lines advise to repeat `command`, the command that writes shards of format `kind`,
  and to check `check`, the names of the settings that hold the folder's path.
  """
  name = os.path.join(folder, INDEX)
  try:
    name.encode()
    with open(name, 'rb') as f:
      text = f.read(_LARGEST_INDEX)
  except UnicodeEncodeError as e:
    raise errors.DataError(
      f'{folder!a} has bytes that are no UTF-8, and records are read only from folders whose names '
      f'are UTF-8; rename the folder, and set {check}'
    ) from e
  except OSError as e:
    raise errors.DataError(
      f'{name} cannot be read: {e.strerror}; the index is written last: run `{command}` to '
      f'the end, and check {check}'
    ) from e
  try:
    index = json.loads(text)
    if index['format'] != kind:
      raise ValueError(f'its format is {index["format"]!r}, not {kind!r}')
    version = index['version']
    if version == VERSION:
      _check(index)
  except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
    reason = f'{type(e).__name__}: {e}'[:160]
    raise errors.DataError(
      f'{name} is damaged: {reason}; copy the file again or repeat `{command}`'
    ) from e
  if version != VERSION:
    raise errors.DataError(
      f'{name} has format version {version!r:.20}, this gdistill reads {VERSION}; repeat '
      f'`{command}` into another folder, or install the version of gdistill that wrote {name}'
    )
  for shard in (*index['shards'], *index.get('text_shards', ())):
    file = os.path.join(folder, shard['name'])
    try:
      size = os.stat(file).st_size
    except OSError as e:
      raise errors.DataError(
        f'{file} cannot be read: {e.strerror}; copy the file again or repeat `{command}`'
      ) from e
    if size != shard['bytes']:
      raise errors.DataError(
        f'{file} has {size:,} bytes, not {shard["bytes"]:,}; copy the file again or '
        f'repeat `{command}`'
      )
  return index


def _check(index: dict[str, Any]) -> None:
  """Raises ValueError, KeyError or TypeError if a field of an index is missing or inconsistent."""
  if digest(index) != index['digest']:
    raise ValueError('its digest is wrong: the file was changed')
  shape, names, shards = index['shape'], index['class_names'], index['shards']
  if len(shape) != 3 or not all(type(n) is int and 0 < n < 2**16 for n in shape):
    raise ValueError(f'its shape is {shape}, not three whole numbers from 1 to 65,535')
  if not names or not all(isinstance(n, str) for n in names):
    raise ValueError('its class_names are not a list of names')
  for shard in (*shards, *index.get('text_shards', ())):
    if not _NAME.fullmatch(shard['name']) or type(shard['bytes']) is not int:
      raise ValueError(f'shard {shard["name"]!r} has a wrong name or no number of bytes')
    if type(shard['count']) is not int or shard['count'] < 0:
      raise ValueError(f'shard {shard["name"]!r} has count {shard["count"]!r}, no whole number')
  if index['count'] != sum(s['count'] for s in shards):
    raise ValueError(f'count {index["count"]} is not the number of records in the shards')


def _split(settings: recipes.Data, split: str, shape: tuple[int, int, int]) -> source.Source:
  folder = os.path.join(settings.path, split) if split else settings.path
  index = read_index(folder)
  found = tuple(index['shape'])
  if found != shape:
    raise errors.ShapeError(
      found,
      f'{folder} holds pictures of height, width, channels {list(found)}, but the model '
      f'takes {list(shape)}; set model.image_size={found[0]} and model.image_channels={found[2]}, '
      f'or run `gdistill prepare --size={shape[0]} --channels={shape[2]}` into another folder',
    )
  shards = tuple((s['name'], s['count']) for s in index['shards'])
  notes = ()
  if 'orientation' not in index.get('made', {}):
    notes = (
      f'{folder} was prepared by an earlier version of gdistill, which ignored EXIF orientation '
      'and enlarged tiny pictures: it is read as it is; photographs that lie on their side stay so',
    )
  read = _Read(Shards(folder, shards, 'gdistill prepare'), shape, notes)
  names = tuple(index['class_names'])
  return source.Source(read, index['count'], shape, names, index['digest'][:16])


class Shards:
  """Reads records by their number in a split, from the shard files of a folder.

  `shards` lists (file name, number of records) of every shard file. A shard file is opened at its
  first read. A pickled copy of this object opens the shard files again in another process.
  `command` is the command that wrote the shards, for error lines.
  """

  def __init__(self, folder: str, shards: tuple[tuple[str, int], ...], command: str):
    self.folder, self._shards, self._command = folder, shards, command
    self._first = np.cumsum([0, *(count for _, count in shards)])
    self._readers = {}

  def __reduce__(self):
    return Shards, (self.folder, self._shards, self._command)

  def read(self, i: int, parse: Callable[[bytes, int, int], Any]) -> Any:
    """Returns parse(bytes of record i, number of the record's shard, place in that shard).

    Raises DataError if the record cannot be read, or if `parse` raises any exception.
    """
    shard = int(np.searchsorted(self._first, i, 'right')) - 1
    place = int(i - self._first[shard])
    try:
      return parse(self._reader(shard).read([place])[0], shard, place)
    except Exception as e:  # array_record and `parse` raise many kinds of exceptions
      name = os.path.join(self.folder, self._shards[shard][0])
      reason = errors.brief(e)
      raise errors.DataError(
        f'record {place} of {name} cannot be read: {reason}; copy the file again, or remove the '
        f'file and repeat `{self._command}`'
      ) from e

  def _reader(self, shard: int) -> Any:
    found = self._readers.get(shard)
    if found is None:  # two threads may open the same file; the last reader is kept
      from array_record.python import array_record_module  # imported late, as the import is slow

      name, count = self._shards[shard]
      found = array_record_module.ArrayRecordReader(
        os.path.join(self.folder, name),
        'readahead_buffer_size:0,max_parallelism:0',  # no read-ahead: reads are in random order
        file_reader_buffer_size=2**15,
      )
      if not found.ok():
        found.read([0])  # raises array_record's error with the reason why opening failed
      if found.num_records() != count:
        raise ValueError(f'the file has {found.num_records()} records, not {count}')
      for old in list(self._readers)[: max(0, len(self._readers) + 1 - _MOST_OPEN)]:
        self._readers.pop(old, None)  # the reader closes its file once no thread uses the reader
      self._readers[shard] = found
    return found


@dataclasses.dataclass(frozen=True, eq=False)
class _Read:
  """Reads example i as (pixels, label).

  The reader is a class, not a closure, because worker processes get the reader by pickle, and
  closures cannot be pickled.
  """

  shards: Shards
  shape: tuple[int, int, int]
  notes: tuple[str, ...] = ()  # lines for the user

  @property
  def labels(self) -> np.ndarray:
    return _labels(self.shards.folder, read_index(self.shards.folder))

  def __call__(self, i: int) -> tuple[np.ndarray, int]:
    return self.shards.read(i, lambda data, shard, place: parse(data, shard, place, self.shape))


def _labels(folder: str, index: dict[str, Any]) -> np.ndarray:
  """Reads the labels of all records of a split from the file labels.int32, [count] int32."""
  name = os.path.join(folder, LABELS)
  try:
    with open(name, 'rb') as f:
      data = f.read(4 * index['count'] + 1)
  except OSError as e:
    raise errors.DataError(
      f'{name} cannot be read: {e.strerror}; copy the file again or repeat `gdistill prepare`'
    ) from e
  if hashlib.sha256(data).hexdigest() != index.get('labels'):
    raise errors.DataError(f'{name} is damaged; copy the file again or repeat `gdistill prepare`')
  return np.frombuffer(data, '<i4')
