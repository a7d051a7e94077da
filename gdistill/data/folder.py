"""Reads pictures `<split>/<class>/<name>.jpg` from a folder, a tar archive or a zip archive."""

import dataclasses
import os
import tarfile
import zipfile
from collections.abc import Callable, Iterator

import numpy as np

from gdistill import errors
from gdistill.data import files
from gdistill.data import pictures
from gdistill.data import source
from gdistill.recipe import settings as recipes

_ARCHIVES = ('.zip', '.tar', '.tar.gz', '.tgz', '.tar.bz2', '.tar.xz', '.txz')
_MOST_MEMBERS = 2_000_000  # largest number of pictures in one archive
_MOST_BYTES = 16 * 2**30  # largest number of bytes of an archive's pictures in memory
_LARGEST = 2**28  # largest number of bytes of one picture file
_MOST_RATIO = 200  # largest ratio of the pictures' unpacked bytes to the archive's bytes


def load(
  settings: recipes.Data, shape: tuple[int, int, int]
) -> tuple[source.Source, source.Source]:
  """Returns (training, held out), two sources of the pictures at data.path.

  The two sources are the splits data.split and data.held_out_split. If data.held_out is set, the
  pictures of data.split are divided, and the share data.held_out of every class is held out. If the
  name of a split is '', the class folders lie directly in data.path. The class names are the sorted
  names of the class folders. Pictures whose size is not `shape` are cropped and resized.
  """
  found = listing(settings.path)
  train = split(found, settings.split, shape)
  if settings.held_out:
    return source.held_out(train, settings.held_out)
  held = split(found, settings.held_out_split, shape)
  splits = (settings.split, settings.held_out_split)
  source.same_classes(train, held, f'data.path={settings.path}', splits)
  return train, held


@dataclasses.dataclass(frozen=True, eq=False)
class Listing:
  """The pictures of a folder or an archive, with their sizes in bytes: {'train/cat/1.jpg': 4711}.

  All pictures of an archive are unpacked at the start, because a compressed archive cannot be read
  in random order. If `spool` is '', `contents` holds the bytes of an archive's pictures in memory.
  If `spool` is the path of a file, this file holds the bytes of an archive's pictures one after
  another, and `offsets` holds the position in the file where each picture begins.
  """

  path: str
  sizes: dict[str, int]
  contents: dict[str, bytes] | None = None
  spool: str = ''
  offsets: dict[str, int] | None = None


def listing(path: str, spool: str = '', poll: Callable[[], None] = lambda: None) -> Listing:
  """Lists the pictures of a folder or an archive; unpacks an archive to the file `spool`.

  If `spool` is '', the pictures of an archive are unpacked to memory. `poll()` is called between
  the pictures of an archive and may raise an exception to stop the unpacking.
  """
  if not os.path.isfile(path):
    return Listing(path, _folder(path))
  if not spool:
    contents = _without_one_top(dict(_archive(path, _MOST_BYTES, 'keep in memory')))
    return Listing(path, {n: len(data) for n, data in contents.items()}, contents)
  where, end = {}, 0
  try:
    with open(spool, 'wb') as f:
      for name, data in _archive(path, 2**50, 'unpack'):
        where[name] = end, len(data)
        end += f.write(data)
        poll()
  except OSError as e:
    raise files.unwritable(spool, e) from e
  where = _without_one_top(where)
  sizes = {n: size for n, (_, size) in where.items()}
  return Listing(path, sizes, None, spool, {n: offset for n, (offset, _) in where.items()})


def split(listed: Listing, name: str, shape: tuple[int, int, int]) -> source.Source:
  """Returns the source of the pictures in `<name>/<class>/`, or in `<class>/` if `name` is ''."""
  prefix = f'{name}/' if name else ''
  names = [n for n in listed.sizes if n.startswith(prefix) and n.count('/') == bool(name) + 1]
  if not names:
    raise errors.DataError(_nothing(listed, prefix))
  names.sort(key=lambda n: n.split('/'))  # sorts by class, then by file name
  classes = [n.removeprefix(prefix).partition('/')[0] for n in names]
  class_names = tuple(sorted(set(classes)))
  numbers = {c: k for k, c in enumerate(class_names)}
  labels = np.array([numbers[c] for c in classes], np.int32)
  sizes = np.array([listed.sizes[n] for n in names], np.int64)
  contents = listed.contents and [listed.contents[n] for n in names]
  offsets = listed.offsets and np.array([listed.offsets[n] for n in names], np.int64)
  parts = [f'{n.removeprefix(prefix)} {size}' for n, size in zip(names, sizes, strict=True)]
  read = _Read(listed.path, names, sizes, labels, shape, contents, listed.spool, offsets)
  return source.Source(
    read, len(names), shape, class_names, source.fingerprint(parts), heavy=contents is not None
  )


@dataclasses.dataclass(frozen=True, eq=False)
class _Read:
  """Reads example i as (pixels, label).

  The reader is a class, not a closure, because worker processes unpickle the reader.
  """

  path: str
  names: list[str]  # paths of the pictures, such as 'train/cat/1.jpg'
  sizes: np.ndarray
  labels: np.ndarray
  shape: tuple[int, int, int]
  contents: list[bytes] | None
  spool: str
  offsets: np.ndarray | None

  def __call__(self, i: int) -> tuple[np.ndarray, int]:
    pixels = pictures.decode(self._data(i), os.path.join(self.path, self.names[i]), self.shape[2])
    return pictures.square(pixels, self.shape[0]), int(self.labels[i])

  def name(self, i: int) -> str:
    return self.names[i]

  def part(self, i: int) -> str:
    """Returns name, size and label of example i as one string, to be hashed into a fingerprint."""
    return f'{self.names[i]} {self.sizes[i]} {self.labels[i]}'

  def _data(self, i: int) -> bytes:
    if self.contents is not None:
      return self.contents[i]
    name = os.path.join(self.path, self.names[i])
    try:
      with open(self.spool or name, 'rb') as f:
        if not self.spool:
          return f.read(_LARGEST)
        f.seek(int(self.offsets[i]))
        return f.read(int(self.sizes[i]))
    except OSError as e:
      raise errors.DataError(f'{name} cannot be read: {e.strerror}; fix or remove the file') from e


def _nothing(listed: Listing, prefix: str) -> str:
  """Returns the text of the DataError for a split that has no pictures."""
  where = f'data.path={listed.path}'
  flat = sum(n.startswith(prefix) and n.count('/') == prefix.count('/') for n in listed.sizes)
  if flat:
    return (
      f'{where}: {prefix or "its top"} has {flat:,} pictures in no class subfolder, so without '
      "labels (ImageNet's validation pictures come like that); sort the pictures into "
      '<class>/ folders, or use no held-out split and set data.held_out=0.05 in the recipe'
    )
  tops = sorted({n.partition('/')[0] for n in listed.sizes})
  return (
    f'{where} has no pictures named {prefix}<class>/<name> ending in '
    f'{", ".join(pictures.SUFFIXES)}; it holds {", ".join(tops[:5]) or "none at all"}'
    f'{", ..." if len(tops) > 5 else ""}; as the split, give the name of the folder of the classes'
  )


def _folder(path: str) -> dict[str, int]:
  """Returns {'train/cat/1.jpg': size in bytes} of the pictures at most two folders deep."""
  if not path or not os.path.isdir(path):
    raise errors.DataError(
      f'data.path={path!r} is no folder or archive; give the path of the pictures to train on'
    )
  found = {}

  def walk(folder, prefix, depth):
    try:
      for e in os.scandir(folder):
        if e.is_dir():
          if depth < 2 and _visible(e.name):
            walk(e.path, f'{prefix}{e.name}/', depth + 1)
        elif _is_picture(e.name):
          found[prefix + e.name] = e.stat().st_size
    except OSError as e:
      at = e.filename or folder
      raise errors.DataError(
        f'data.path={path}: {at} cannot be listed: {e.strerror}; make the folder readable'
      ) from e

  walk(path, '', 0)
  return found


def _archive(path: str, most_bytes: int, too_much: str) -> Iterator[tuple[str, bytes]]:
  """Yields (name, bytes) of every picture in the archive `path`, without writing to the disk.

  Raises DataError if the archive is damaged or too large; the pictures of the archive may have at
  most `most_bytes` bytes together. `too_much` is the verb in the error line about the size:
  'unpack' or 'keep in memory'.
  """
  if not path.lower().endswith(_ARCHIVES):
    raise errors.DataError(
      f'data.path={path} is a file, but no archive ({", ".join(_ARCHIVES)}); unpack the file '
      'and give the path of the folder'
    )
  members = total = 0
  most = min(most_bytes, 2**26 + _MOST_RATIO * os.path.getsize(path))

  def checked(name, size, read):
    nonlocal members, total
    members, total = members + 1, total + size
    if members > _MOST_MEMBERS or size > _LARGEST or total > most:
      raise errors.DataError(
        f'data.path={path} holds more than {_MOST_MEMBERS:,} pictures, more than '
        f'{most / 2**30:.3g} GiB or a picture of over {_LARGEST / 2**30:g} GiB, which is too much '
        f'to {too_much}; unpack the archive yourself and give the path of the folder'
      )
    # One byte more than `size` is read, to notice a picture that is longer than the header says.
    data = read(size + 1)
    if len(data) != size:
      raise errors.DataError(
        f'{path}: {name} has another length than the archive says; pack the archive again'
      )
    return name.removeprefix('./').lstrip('/'), data

  try:
    if zipfile.is_zipfile(path):
      with zipfile.ZipFile(path) as z:
        for info in z.infolist():
          if _is_picture(info.filename) and not info.is_dir():
            with z.open(info) as f:
              yield checked(info.filename, info.file_size, f.read)
    else:
      with tarfile.open(path, tarinfo=_Member) as t:
        for member in t:
          if member.isfile() and _is_picture(member.name):
            yield checked(member.name, member.size, t.extractfile(member).read)
  except (errors.DataError, GeneratorExit):
    raise
  # All exceptions are caught, because tarfile, zipfile, lzma and zlib raise their own exceptions.
  except Exception as e:
    reason = errors.brief(e)
    raise errors.DataError(
      f'data.path={path} cannot be read: {reason}; copy the archive again'
    ) from e


class _Member(tarfile.TarInfo):
  """The header of a file in a tar archive; a damaged header raises ReadError.

  The class tarfile.TarInfo would take a damaged header for the end of the archive, so the pictures
  after a damaged header would be missing without an error.
  """

  @classmethod
  def frombuf(cls, buf, encoding, errors):
    try:
      return super().frombuf(buf, encoding, errors)
    except tarfile.EOFHeaderError:
      raise
    except tarfile.HeaderError as e:
      raise tarfile.ReadError(str(e)) from e


def _visible(name: str) -> bool:
  """Returns False for names of hidden or system files, such as '.DS_Store' or '__MACOSX'."""
  return not name.startswith('.') and name != '__MACOSX'


def _is_picture(name: str) -> bool:
  parts = name.removeprefix('./').split('/')
  return name.lower().endswith(pictures.SUFFIXES) and all(map(_visible, parts))


def _without_one_top(found: dict) -> dict:
  """Removes the top folder from all names if all names begin with the same top folder.

  The top folder is removed only if every name also has a split, a class and a file name below the
  top folder.
  """
  tops = {n.partition('/')[0] for n in found}
  if len(tops) == 1 and all(n.count('/') > 2 for n in found):
    return {n.partition('/')[2]: v for n, v in found.items()}
  return found
