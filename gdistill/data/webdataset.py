"""Reads WebDataset shards, plain tar files of `key.jpg` and `key.txt`, at random through an index.

The shards are not unpacked, so a tar member cannot overwrite a file.
"""

import array
import dataclasses
import functools
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
from gdistill.data import archives
from gdistill.data import caption_files
from gdistill.data import earlier
from gdistill.data import headers
from gdistill.data import passed
from gdistill.data import pictures
from gdistill.data import source

# Suffixes of caption files, in order of preference: the first file that is not empty is used.
_TEXTS = ('txt', 'caption', 'json')
# Names of the fields of a .json file that may hold the caption.
_FIELDS = ('caption', 'text')
# First bytes of files compressed by gzip, bzip2, xz and zstd.
_COMPRESSED = (b'\x1f\x8b', b'BZh', b'\xfd7zXZ', b'\x28\xb5\x2f\xfd')
_LARGEST = 2**28  # largest size of one member of a tar, in bytes
_MOST_SHARDS = 100_000  # largest number of shards that one pattern may match
_BLOCK = 512  # bytes of a tar block; the header of a tar member is one block


@dataclasses.dataclass(frozen=True, eq=False)
class Index:
  """The index of WebDataset shards: where the picture and the caption of every sample lie.

  `rows[i, 0]` is the number of the shard that holds sample i. `rows[i, 1:3]` is the (offset, size
  in bytes) of the picture of sample i. `rows[i, 3:5]` is the (offset, size in bytes) of the caption
  of sample i. `rows[i, 5]` is the suffix of the caption's file, as an index into _TEXTS. `notes`
  has messages for the user about samples that were left out and about captions of several lines.
  `changed` and `otherwise` say, for error lines, which captions and pictures earlier versions read
  otherwise, and `printed` is the fingerprint in earlier versions.
  """

  shards: tuple[str, ...]
  rows: np.ndarray  # int64 [number of samples, 6]
  fingerprint: str
  notes: tuple[str, ...] = ()
  changed: str = ''
  otherwise: str = ''
  printed: str = ''


def index(path: str, size: int) -> Index:
  """Returns the index of all shards in a folder, or of the shards that a pattern matches.

  A pattern has braces or a wildcard, such as 'at/{00000..00331}.tar' or 'at/*.tar'. `index` reads
  all tar headers and captions, and samples of the bytes of the pictures. A picture that would be
  enlarged too much to `size` pixels a side is left out. Raises DataError if a shard is missing or
  damaged.
  """
  names, rows, out = tuple(shards(path)), array.array('q'), _LeftOut(_beside_shards(path))
  tally, before = caption_files.Tally(), source.Fingerprint()

  def parts():
    for number, shard in enumerate(names):
      for key, picture, caption, kind, text, stamp in _samples(shard, out, size):
        rows.extend((number, *picture, *caption, kind))
        part = f'{key} {picture[1]} {tally.caption(text, key)}'
        before.add(part)
        yield f'{part} {stamp}'

  fingerprint = source.fingerprint(parts())
  if not rows:
    raise errors.DataError(
      f'data.path={path} holds no picture ({", ".join(pictures.SUFFIXES)}) with a caption (.txt, '
      f'.caption, or a .json with {" or ".join(map(repr, _FIELDS))}), but {out}'
      f'{f"; passed over {out.passed}" if out.passed else ""}; set '
      'data.path to other shards: see "WebDataset shards" in docs/data.md'
    )
  where = f'data.path={path}'
  left = (f'{where}: {out} are left out',) if out.first else ()
  notes = tally.notes(where) + left + out.passed.notes(where)
  found = np.frombuffer(rows, np.int64).reshape(-1, 6).copy()
  otherwise = earlier.of_names(out.new, out.small)
  return Index(names, found, fingerprint, notes, tally.changed, otherwise, str(before))


def shards(path: str) -> list[str]:
  """Returns the paths of the .tar files of a folder, or of the shards that a pattern matches."""
  if os.path.isdir(path):
    found = sorted(n for n in os.listdir(path) if n.endswith('.tar') and not n.startswith('.'))
    if not found:
      raise errors.DataError(
        f'{path} holds no .tar files; set data.path to the folder or the pattern of the shards, '
        'which must be uncompressed tar files'
      )
    return [os.path.join(path, n) for n in found]
  found, empty = [], ''
  for name in itertools.islice(_expanded(path), _MOST_SHARDS + 1):
    # Every file name that braces expand to must exist; a wildcard must match at least one file.
    wild = glob.has_magic(name) and not os.path.isfile(name)
    there = sorted(glob.glob(name)) if wild else [name]
    found += there
    empty = empty or ('' if there else name)
  if empty or not found:
    raise errors.DataError(
      f'{empty or path} matches no file; set data.path to the shards, such as folder/{{00..41}}.tar'
    )
  if len(found) > _MOST_SHARDS:
    raise errors.DataError(
      f'{path} matches more than {_MOST_SHARDS:,} shards; set data.path to a pattern with fewer'
    )
  missing = [n for n in found if not os.path.isfile(n)]
  if missing:
    raise errors.DataError(
      f'{missing[0]} is missing{f", and {len(missing) - 1:,} more" if missing[1:] else ""}; '
      'download the shard, or set data.path to a pattern without that shard'
    )
  return found


def _beside_shards(path: str) -> passed.Passed:
  """Returns the archives of a folder of shards that are no shards, as what is passed over."""
  over = passed.Passed()
  for folder, folders, files in os.walk(path if os.path.isdir(path) else ''):
    folders[:] = filter(passed.visible, folders) if folder == path else ()
    kinds = archives.SUFFIXES if folder != path else tuple(set(archives.SUFFIXES) - {'.tar'})
    found = (os.path.relpath(os.path.join(folder, f), path) for f in files if passed.visible(f))
    over.add(passed.SHARD, (f for f in found if f.lower().endswith(kinds) or f.endswith('.TAR')))
  return over


@dataclasses.dataclass(frozen=True, eq=False)
class Read:
  """Reads sample i: a call returns (pixels [size, size, 3], label 0), `caption(i)` the caption.

  The reader is a class, not a closure, because worker processes get the reader by pickle, and
  closures cannot be pickled.
  """

  index: Index
  size: int

  @property
  def notes(self) -> tuple[str, ...]:
    return self.index.notes

  @property
  def changed(self) -> str:
    return self.index.changed

  @property
  def labels(self) -> np.ndarray:
    return np.zeros(len(self.index.rows), np.int32)

  def __call__(self, i: int) -> tuple[np.ndarray, int]:
    data = self.file_bytes(i)
    try:
      pixels = pictures.squared(data, '', 3, self.size)
    except errors.DataError:  # only now, because a name is looked up in the headers of the shard
      pixels = pictures.squared(data, self.name(i), 3, self.size)
    self.caption(i)  # raises DataError if the caption can no longer be read
    return pixels, 0

  def before(self) -> tuple['Read', str]:
    return self, self.index.printed

  def file_bytes(self, i: int) -> bytes:
    return self._data(i, slice(1, 3))

  def caption(self, i: int) -> str:
    text = _text(self._data(i, slice(3, 5)), int(self.index.rows[i, 5]))
    found = caption_files.one_line(text)
    if not found:
      raise errors.DataError(
        f'{self.name(i)} lost its caption since the run began; start the run again'
      )
    return found

  def name(self, i: int) -> str:
    """Returns 'SHARD: NAME', the shard's path and the picture's name in the tar, for error lines.

    The index holds no names, so all headers of the shard are read.
    """
    number, offset = self.index.rows[i, :2]
    shard = self.index.shards[number]
    try:
      name = _names(shard)[int(offset)]
    except (OSError, tarfile.TarError, KeyError):
      name = f'the picture at byte {offset:,}'
    return f'{shard}: {name}'

  def _data(self, i: int, where: slice) -> bytes:
    shard, (offset, size) = self.index.shards[self.index.rows[i, 0]], self.index.rows[i, where]
    try:
      with open(shard, 'rb') as f:
        f.seek(offset)
        data = f.read(size)
    except OSError as e:
      raise errors.DataError(f'{shard} cannot be read: {e.strerror}; copy the file again') from e
    if len(data) != size:
      raise errors.DataError(f'{shard} became shorter since the run began; copy the file again')
    return data


@functools.lru_cache(maxsize=2)
def _names(shard: str) -> dict[int, str]:
  """Returns {offset of the contents: name} of the members of a shard."""
  with tarfile.open(shard, 'r:') as t:
    return {member.offset_data: member.name for member in t if member.isreg()}


@dataclasses.dataclass(eq=False)
class _LeftOut:
  """Counts the samples that lack a picture or a caption, and names the first such sample.

  `passed` counts the files that are passed over.
  """

  passed: passed.Passed
  pictures: int = 0
  captions: int = 0
  first: str = ''
  small: list[str] = dataclasses.field(default_factory=list)  # pictures that are too small
  new: list[str] = dataclasses.field(default_factory=list)  # those that earlier versions left out

  def __str__(self) -> str:
    first = f' (the first is {self.first})' if self.first else ''
    return (
      f'{passed.counted(self.captions, "sample")} without a readable caption and '
      f'{self.pictures:,} without a picture{first}'
    )


def _samples(shard: str, out: _LeftOut, size: int) -> Iterator[tuple]:
  """Yields (key, picture, caption, kind, text, stamp) of each sample with picture and caption.

  `picture` and `caption` are the (offset, size in bytes) of the two files in the shard. `kind` is
  the suffix of the caption's file, as an index into _TEXTS, and `text` is the text of the caption.
  `stamp` is a hash of samples of the picture's bytes. `out` counts the samples that lack a picture
  or a caption, and those whose picture would be enlarged too much to `size` pixels a side.
  """
  try:
    with open(shard, 'rb') as f:
      members = _members(f, shard, out.passed)
      for key, fields in members.items():
        suffixes = [e for e in pictures.SUFFIXES if e[1:] in fields]
        suffix = suffixes[0] if suffixes else ''
        picture = fields.get(suffix[1:])
        out.passed.add(passed.SECOND, (f'{shard}: {key}{e}' for e in suffixes[1:]))
        kind, caption, text = _caption(f, shard, key, fields, out.passed)
        seen = headers.of_part(f, *picture) if picture and text else None
        large = seen is None or headers.large_enough([seen], size)[0]
        if seen and large:
          if suffix not in earlier.SUFFIXES:
            out.new.append(key + suffix)
          yield key, picture, caption, kind, text, seen.stamp.hex()
          continue
        if not large:
          out.small.append(f'{shard}: {key}{suffix}')
          out.passed.add(passed.SMALL, out.small[-1:])
          continue
        out.pictures += not picture
        out.captions += bool(picture)
        out.first = out.first or f'{key!r} in {shard}'
  except OSError as e:
    raise errors.DataError(f'{shard} cannot be read: {e.strerror}; copy the file again') from e


def _caption(f: BinaryIO, shard: str, key: str, fields: dict, over: passed.Passed) -> tuple:
  """Returns (kind, place, text) of a sample's first readable caption; `over` counts other texts."""
  first = 0, (0, 0), ''
  for kind, place in ((k, fields[e]) for k, e in enumerate(_TEXTS) if e in fields):
    f.seek(place[0])
    if (text := _text(f.read(place[1]), kind)) and not first[2]:
      first = kind, place, text
    elif text and caption_files.one_line(text) != caption_files.one_line(first[2]):
      over.add(passed.CAPTION, (f'{shard}: {key}.{_TEXTS[kind]}',))
  return first


def _members(f: BinaryIO, shard: str, over: passed.Passed) -> dict[str, dict[str, tuple[int, int]]]:
  """Returns {key: {suffix: (offset, size in bytes)}} of the pictures and captions in a shard.

  A key is a tar member's name up to the last dot, and its suffix, such as 'jpg', follows the dot.
  Links inside the shard are followed. `over` counts the pictures of formats that are not read.
  Raises DataError for a damaged shard.
  """
  places, links = {}, {}  # {name: (offset, size in bytes)} of files, {name of a link: its target}
  if f.read(6).startswith(_COMPRESSED):
    raise errors.DataError(
      f'{shard} is compressed, but shards are read at random places; decompress the file to a .tar'
    )
  f.seek(0)
  try:
    with tarfile.open(fileobj=f, mode='r:') as t:
      for member in t:
        name = member.name.removeprefix('./')
        if (name in places or name in links) and _is_of_a_sample(name):
          raise _twice(shard, name)
        if target := archives.link(member):
          links[name] = target
        elif member.isreg():
          if _is_of_a_sample(name) and (member.issparse() or member.size > _LARGEST):
            raise errors.DataError(
              f'{shard}: {name} is sparse or larger than {_LARGEST / 2**30:g} GiB; pack the shard '
              'again without this file'
            )
          places[name] = member.offset_data, member.size
      _check_end(f, t.offset)
  except (errors.DataError, OSError):
    raise
  except Exception as e:  # tarfile also raises exceptions of other modules
    reason = errors.brief(e)
    raise errors.DataError(f'{shard} is no whole tar: {reason}; copy the file again') from e
  found = {}
  for name in (*places, *links):
    if _is_of_a_sample(name):
      place = places.get(archives.followed(name, links) if links else name)
      if place is None:
        raise errors.DataError(
          f'{shard}: {name} is a link to a file that this shard does not hold; pack the shard '
          'again with that file (tar --dereference packs files instead of links)'
        )
      key, _, kind = name.rpartition('.')
      fields = found.setdefault(key, {})
      if kind.lower() in fields:
        raise _twice(shard, name)
      fields[kind.lower()] = place
    elif passed.is_unread(name):
      over.add(passed.UNREAD, (f'{shard}: {name}',))
  return found


def _twice(shard: str, name: str) -> errors.DataError:
  return errors.DataError(
    f'{shard}: {name} is there twice; pack the shard again, with a different name for each sample'
  )


def _is_of_a_sample(name: str) -> bool:
  key, _, kind = name.rpartition('.')
  known = kind.lower() in _TEXTS or f'.{kind.lower()}' in pictures.SUFFIXES
  return bool(key) and known and not os.path.basename(key).startswith('.')


def _check_end(f: BinaryIO, offset: int) -> None:
  """Raises ValueError unless the tar file holds only zeros from byte `offset` to its end.

  Damage would go unnoticed without `_check_end`, because tarfile treats a damaged header as the end
  of the tar.
  """
  f.seek(offset)
  block = f.read(_BLOCK)
  if len(block) < _BLOCK:
    raise ValueError('the file ends without the end mark of a tar')
  while block:
    if block.strip(b'\0'):
      raise ValueError(f'the file is damaged at or after byte {offset:,}')
    block = f.read(2**20)


def _text(data: bytes, kind: int) -> str:
  """Returns the text of the caption in `data`, the bytes of a caption file.

  Returns '' if `data` is not readable or has no caption that is more than spaces.
  """
  try:
    found = caption_files.decoded(data)
    if _TEXTS[kind] == 'json':
      stored = json.loads(found)
      found = next((stored[f] for f in _FIELDS if stored.get(f)), '')
      found = next(filter(caption_files.one_line, found), '') if isinstance(found, list) else found
    return found if caption_files.one_line(found) else ''
  except (ValueError, AttributeError, TypeError, RecursionError):
    return ''


def _expanded(pattern: str) -> Iterator[str]:
  """Expands the braces of a pattern, 'a{00..02}.tar' or 'a{x,y}.tar', as a shell does."""
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
