"""Pictures in class subfolders, `<split>/<class>/<name>.jpg`: a folder, or a tar or zip archive."""

import dataclasses
import os
import tarfile
import zipfile
from collections.abc import Callable, Iterator

import numpy as np

from gdistill import errors
from gdistill.data import pictures
from gdistill.data import source
from gdistill.recipe import settings as recipes

_ARCHIVES = ('.zip', '.tar', '.tar.gz', '.tgz', '.tar.bz2', '.tar.xz', '.txz')
_MOST_MEMBERS, _MOST_BYTES = 2_000_000, 16 * 2**30
_LARGEST, _MOST_RATIO = 2**28, 200  # bytes of a picture; of all of them to the archive's


def load(
  settings: recipes.Data, shape: tuple[int, int, int]
) -> tuple[source.Source, source.Source]:
  """(training, held out) of data.path: its two splits, or a share of each class of the first.

  A split of '' means that the classes lie at the top. Class names are the subfolders', sorted.
  Pictures of another size are cropped and resized as pictures.square does.
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
  """What lies at a path: {'train/cat/1.jpg': its bytes}, and the contents of an archive."""

  path: str
  sizes: dict[str, int]
  contents: dict[str, bytes] | None = None  # in memory: archives cannot be read at random
  spool: str = ''  # or one after another in this file, at these offsets
  offsets: dict[str, int] | None = None


def listing(path: str, spool: str = '', check: Callable[[], None] = lambda: None) -> Listing:
  """Of a folder or an archive, whose pictures go into the file `spool`, or else into memory.

  `check` is called between pictures and may raise.
  """
  if not os.path.isfile(path):
    return Listing(path, _folder(path))
  if not spool:
    contents = _without_one_top(dict(_archive(path, _MOST_BYTES, 'keep in memory; unpack it')))
    return Listing(path, {n: len(data) for n, data in contents.items()}, contents)
  where, end = {}, 0
  try:
    with open(spool, 'wb') as f:
      for name, data in _archive(path, 2**50, 'unpack'):
        where[name] = end, len(data)
        end += f.write(data)
        check()
  except OSError as e:
    raise errors.DataError(f'{spool} cannot be written: {e.strerror}; free space') from e
  where = _without_one_top(where)
  sizes = {n: size for n, (_, size) in where.items()}
  return Listing(path, sizes, None, spool, {n: offset for n, (offset, _) in where.items()})


def split(files: Listing, name: str, shape: tuple[int, int, int]) -> source.Source:
  """The pictures of `<name>/<class>/`, or of `<class>/` where the name is ''."""
  prefix = f'{name}/' if name else ''
  names = [n for n in files.sizes if n.startswith(prefix) and n.count('/') == bool(name) + 1]
  if not names:
    raise errors.DataError(_nothing(files, prefix))
  names.sort(key=lambda n: n.split('/'))  # by class first
  classes = [n.removeprefix(prefix).partition('/')[0] for n in names]
  class_names = tuple(sorted(set(classes)))
  numbers = {c: k for k, c in enumerate(class_names)}
  labels = np.array([numbers[c] for c in classes], np.int32)
  sizes = np.array([files.sizes[n] for n in names], np.int64)
  contents = files.contents and [files.contents[n] for n in names]
  offsets = files.offsets and np.array([files.offsets[n] for n in names], np.int64)
  parts = [f'{n.removeprefix(prefix)} {size}' for n, size in zip(names, sizes, strict=True)]
  read = _Read(files.path, names, sizes, labels, shape, contents, files.spool, offsets)
  return source.Source(
    read, len(names), shape, class_names, source.fingerprint(parts), heavy=contents is not None
  )


@dataclasses.dataclass(frozen=True, eq=False)
class _Read:
  """A class, because workers get it pickled."""

  path: str
  names: list[str]  # 'train/cat/1.jpg'
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
    """What example i is made from, without where it lies."""
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
      raise errors.DataError(f'{name} cannot be read: {e.strerror}; mend or remove it') from e


def _nothing(files: Listing, prefix: str) -> str:
  """Why a split has no pictures."""
  where = f'data.path={files.path}'
  flat = sum(n.startswith(prefix) and n.count('/') == prefix.count('/') for n in files.sizes)
  if flat:
    return (
      f'{where}: {prefix or "its top"} has {flat:,} pictures in no class subfolder, so without '
      "labels (ImageNet's validation pictures come like that); sort them into <class>/ folders, "
      'or hold out a share of the training ones'
    )
  tops = sorted({n.partition('/')[0] for n in files.sizes})
  return (
    f'{where} has no pictures named {prefix}<class>/<name> ending in '
    f'{", ".join(pictures.SUFFIXES)}, but {", ".join(tops[:5]) or "none at all"}'
    f'{", ..." if len(tops) > 5 else ""}; name the split that is there'
  )


def _folder(path: str) -> dict[str, int]:
  """{'train/cat/1.jpg': bytes of the file}, two levels of folders down at most."""
  if not path or not os.path.isdir(path):
    raise errors.DataError(f'data.path={path!r} is no folder or archive; name the one to train on')
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
      raise errors.DataError(f'data.path: {at} cannot be listed: {e.strerror}; mend it') from e

  walk(path, '', 0)
  return found


def _archive(path: str, most_bytes: int, too_much: str) -> Iterator[tuple[str, bytes]]:
  """(name, contents) of every picture; names are only ever names, nothing is unpacked to them."""
  if not path.lower().endswith(_ARCHIVES):
    raise errors.DataError(
      f'data.path={path} is a file, but no archive ({", ".join(_ARCHIVES)}); unpack it'
    )
  members = total = 0
  most = min(most_bytes, 2**26 + _MOST_RATIO * os.path.getsize(path))

  def checked(name, size, read):
    nonlocal members, total
    members, total = members + 1, total + size
    if members > _MOST_MEMBERS or size > _LARGEST or total > most:
      raise errors.DataError(
        f'data.path={path} holds more than {_MOST_MEMBERS:,} pictures, {most / 2**30:.3g} GiB of '
        f'them or one of over {_LARGEST / 2**30:g} GiB, too much to {too_much}'
      )
    data = read(size + 1)  # never more than it said
    if len(data) != size:
      raise errors.DataError(f'{path}: {name} has another length than it says; pack it again')
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
  except Exception as e:  # tarfile, zipfile, lzma and zlib each have their own
    reason = errors.brief(e)
    raise errors.DataError(f'data.path={path} cannot be read: {reason}; copy it again') from e


class _Member(tarfile.TarInfo):
  """tarfile takes a damaged header, or none, for the end: the rest would be missing unseen."""

  @classmethod
  def frombuf(cls, buf, encoding, errors):
    try:
      return super().frombuf(buf, encoding, errors)
    except tarfile.EOFHeaderError:
      raise
    except tarfile.HeaderError as e:
      raise tarfile.ReadError(str(e)) from e


def _visible(name: str) -> bool:
  """Not what systems leave about: '.ipynb_checkpoints', '__MACOSX'."""
  return not name.startswith('.') and name != '__MACOSX'


def _is_picture(name: str) -> bool:
  parts = name.removeprefix('./').split('/')
  return name.lower().endswith(pictures.SUFFIXES) and all(map(_visible, parts))


def _without_one_top(found: dict) -> dict:
  """Archives often hold one folder, named like them, with everything in it."""
  tops = {n.partition('/')[0] for n in found}
  if len(tops) == 1 and all(n.count('/') > 2 for n in found):
    return {n.partition('/')[2]: v for n, v in found.items()}
  return found
