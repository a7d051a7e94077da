"""WebDataset shards, plain tars of `key.jpg` and `key.txt`, read at random by where each lies.

Nothing is unpacked, and a member's name is only ever a name.
"""

import array
import dataclasses
import glob
import itertools
import json
import os
import re
import tarfile
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from gdistill import errors
from gdistill.data import pictures
from gdistill.data import source

_TEXTS = ('txt', 'caption', 'json')  # the first that has words in it counts
_FIELDS = ('caption', 'text')  # of a .json
_COMPRESSED = (b'\x1f\x8b', b'BZh', b'\xfd7zXZ', b'\x28\xb5\x2f\xfd')
_LARGEST = 2**28  # bytes of a picture
_MOST_SHARDS = 100_000
_BLOCK = 512  # of a tar


@dataclasses.dataclass(frozen=True, eq=False)
class Index:
  """Sample i lies in shard `rows[i, 0]`: picture at `rows[i, 1:3]`, caption at `rows[i, 3:5]`.

  Both are (offset, bytes); `rows[i, 5]` is the caption's kind, a number in _TEXTS. `notes` has a
  line about the samples that were left out, if any were.
  """

  shards: tuple[str, ...]
  rows: np.ndarray  # [n, 6] int64
  fingerprint: str
  notes: tuple[str, ...] = ()


def index(path: str) -> Index:
  """Of a folder of .tar files, or of a pattern: 'at/{00000..00331}.tar', 'at/*.tar'.

  Reads every header and caption once. DataError names a shard that is missing or damaged.
  """
  names, rows, out = tuple(shards(path)), array.array('q'), _LeftOut()

  def parts():
    for number, shard in enumerate(names):
      for key, picture, caption, kind, words in _samples(shard, out):
        rows.extend((number, *picture, *caption, kind))
        yield f'{key} {picture[1]} {words}'

  fingerprint = source.fingerprint(parts())
  if not rows:
    raise errors.DataError(
      f'{path} holds no picture ({", ".join(pictures.SUFFIXES)}) with a caption (.txt, .caption, '
      f'or a .json with {" or ".join(map(repr, _FIELDS))}), but {out}; name the shards that do'
    )
  notes = (f'{path}: {out} are left out',) if out.first else ()
  return Index(names, np.frombuffer(rows, np.int64).reshape(-1, 6).copy(), fingerprint, notes)


def shards(path: str) -> list[str]:
  """Files, in order: all .tar of a folder, or what braces and wildcards stand for."""
  if os.path.isdir(path):
    found = sorted(n for n in os.listdir(path) if n.endswith('.tar') and not n.startswith('.'))
    if not found:
      raise errors.DataError(
        f'{path} holds no .tar files; name the folder or the pattern of the shards, which must be '
        'plain tars'
      )
    return [os.path.join(path, n) for n in found]
  found, empty = [], ''
  for name in itertools.islice(_expanded(path), _MOST_SHARDS + 1):
    # What braces stand for must be there; what wildcards do is what is there, and something is.
    wild = glob.has_magic(name) and not os.path.isfile(name)
    there = sorted(glob.glob(name)) if wild else [name]
    found += there
    empty = empty or ('' if there else name)
  if empty or not found:
    raise errors.DataError(
      f'{empty or path} stands for no file; name the shards, such as at/{{00..41}}.tar'
    )
  if len(found) > _MOST_SHARDS:
    raise errors.DataError(f'{path} stands for more than {_MOST_SHARDS:,} shards; name fewer')
  missing = [n for n in found if not os.path.isfile(n)]
  if missing:
    raise errors.DataError(
      f'{missing[0]} is missing{f", and {len(missing) - 1:,} more" if missing[1:] else ""}; get '
      'the shard, or leave it out of the pattern'
    )
  return found


@dataclasses.dataclass(frozen=True, eq=False)
class Read:
  """Sample i as (pixels [size, size, 3], caption). A class, because workers get it pickled."""

  index: Index
  size: int

  def __call__(self, i: int) -> tuple[np.ndarray, str]:
    pixels = pictures.decode(self._data(i, slice(1, 3)), self.name(i))
    return pictures.square(pixels, self.size), self.caption(i)

  def caption(self, i: int) -> str:
    found = _words(self._data(i, slice(3, 5)), int(self.index.rows[i, 5]))
    if not found:
      raise errors.DataError(f'{self.name(i)} lost its caption since the start; start again')
    return found

  def name(self, i: int) -> str:
    """For errors; from the header before the picture, which is not kept."""
    number, offset = self.index.rows[i, :2]
    shard = self.index.shards[number]
    try:
      with open(shard, 'rb') as f:
        f.seek(offset - _BLOCK)
        name = tarfile.TarInfo.frombuf(f.read(_BLOCK), 'utf-8', 'surrogateescape').name
    except (OSError, tarfile.TarError):
      name = f'the picture at byte {offset:,}'
    return f'{shard}: {name}'

  def _data(self, i: int, where: slice) -> bytes:
    shard, (offset, size) = self.index.shards[self.index.rows[i, 0]], self.index.rows[i, where]
    try:
      with open(shard, 'rb') as f:
        f.seek(offset)
        data = f.read(size)
    except OSError as e:
      raise errors.DataError(f'{shard} cannot be read: {e.strerror}; get it again') from e
    if len(data) != size:
      raise errors.DataError(f'{shard} became shorter since the start; get it again')
    return data


@dataclasses.dataclass(eq=False)
class _LeftOut:
  """How many samples lack something, and the first of them."""

  pictures: int = 0
  captions: int = 0
  first: str = ''

  def __str__(self) -> str:
    first = f' (the first is {self.first})' if self.first else ''
    return (
      f'{self.captions:,} samples without a readable caption and {self.pictures:,} without a '
      f'picture{first}'
    )


def _samples(shard: str, out: _LeftOut) -> Iterator[tuple]:
  """(key, (offset, bytes) of picture and caption, the latter's kind and words), in order."""
  try:
    with open(shard, 'rb') as f:
      members = _members(f, shard)
      for key, fields in members.items():
        picture = next((fields[e[1:]] for e in pictures.SUFFIXES if e[1:] in fields), None)
        words = ''
        for kind, caption in ((k, fields[e]) for k, e in enumerate(_TEXTS) if e in fields):
          f.seek(caption[0])
          if words := _words(f.read(caption[1]), kind):
            break
        if picture and words:
          yield key, picture, caption, kind, words
        else:
          out.pictures += not picture
          out.captions += bool(picture)
          out.first = out.first or f'{key!r} in {shard}'
  except OSError as e:
    raise errors.DataError(f'{shard} cannot be read: {e.strerror}; get it again') from e


def _members(f: BinaryIO, shard: str) -> dict[str, dict[str, tuple[int, int]]]:
  """{key: {'jpg': (offset, bytes)}}; a key is a member's name up to its last dot."""
  found = {}
  if f.read(6).startswith(_COMPRESSED):
    raise errors.DataError(f'{shard} is compressed, and is read at random; unpack it to a .tar')
  f.seek(0)
  try:
    with tarfile.open(fileobj=f, mode='r:') as t:
      for member in t:
        name = member.name.removeprefix('./')
        key, _, kind = name.rpartition('.')
        kind = kind.lower()
        if not member.isreg() or not _is_of_a_sample(key, kind):
          continue
        if member.issparse() or member.size > _LARGEST:
          raise errors.DataError(
            f'{shard}: {name} is sparse or of over {_LARGEST / 2**30:g} GiB; pack it again'
          )
        fields = found.setdefault(key, {})
        if kind in fields:
          raise errors.DataError(
            f'{shard}: {name} is there twice; pack it again, with keys that differ'
          )
        fields[kind] = member.offset_data, member.size
      _check_end(f, t.offset)
  except (errors.DataError, OSError):
    raise
  except Exception as e:  # tarfile has more kinds than its own
    reason = errors.brief(e)
    raise errors.DataError(f'{shard} is no whole tar: {reason}; get it again') from e
  return found


def _is_of_a_sample(key: str, kind: str) -> bool:
  known = kind in _TEXTS or f'.{kind}' in pictures.SUFFIXES
  return bool(key) and known and not os.path.basename(key).startswith('.')


def _check_end(f: BinaryIO, offset: int) -> None:
  """Raises ValueError unless zeros follow: tarfile takes a damaged header for the end."""
  f.seek(offset)
  block = f.read(_BLOCK)
  if len(block) < _BLOCK:
    raise ValueError('it ends without its end mark')
  while block:
    if block.strip(b'\0'):
      raise ValueError(f'it is damaged at or behind byte {offset:,}')
    block = f.read(2**20)


def _words(data: bytes, kind: int) -> str:
  """The first line with anything in it; '' where there is none that can be read."""
  try:
    found = data.decode('utf-8-sig')
    if _TEXTS[kind] == 'json':
      stored = json.loads(found)
      found = next((stored[f] for f in _FIELDS if stored.get(f)), '')
      found = found[0] if isinstance(found, list) else found
    return first_line(found)
  except (ValueError, AttributeError, TypeError, RecursionError):
    return ''


def first_line(text: str) -> str:
  """That has anything in it: where a file has several captions, each is a line.

  Half of a pair of surrogates, which JSON may hold, is no character: it becomes '?'.
  """
  words = next(filter(None, map(str.strip, text.splitlines())), '')
  return words.encode('utf-8', 'replace').decode()


def _expanded(pattern: str) -> Iterator[str]:
  """'a{00..02}.tar' or 'a{x,y}.tar' -> the names it stands for, as a shell writes them."""
  found = re.search(r'\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}', pattern)
  if not found:
    yield pattern
    return
  first, last, names = found.groups()
  if names is None:
    width = len(first) if first.startswith('0') else 0
    middle = (str(n).zfill(width) for n in range(int(first), int(last) + 1))
  else:
    middle = iter(names.split(','))
  for name in middle:
    yield from _expanded(pattern[: found.start()] + name + pattern[found.end() :])
