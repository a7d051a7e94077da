"""Reads unlabelled pictures of one size from a folder or an .npz file, to evaluate them."""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gdistill import errors
from gdistill.data import caption_files
from gdistill.data import headers
from gdistill.data import looked
from gdistill.data import passed as passed_over
from gdistill.data import pictures
from gdistill.data import sheet_marks
from gdistill.data import source

# Names that the array of pixels may have in an .npz file.
_ARRAYS = ('arr_0', 'pixels', 'samples', 'images')


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
  """Pictures to evaluate: `read(i)` returns picture i, uint8 of `shape` [H, W, 1 or 3].

  `names` are the paths of the picture files; `names` is () if the pictures come from an .npz file.
  `passed` counts the files of the folder that are passed over.
  If pictures are resized, `small` are the paths of the files that are passed over because they
  would be enlarged too much, and `stamps` the hashes of the files in `names`, as headers.look makes
  them.
  """

  read: Callable[[int], np.ndarray]
  count: int
  shape: tuple[int, int, int]
  path: str
  names: tuple[str, ...] = ()
  square: '_Square | None' = None
  passed: passed_over.Passed = dataclasses.field(default_factory=passed_over.Passed)
  small: tuple[str, ...] = ()
  stamps: tuple[bytes, ...] = ()

  @property
  def brought(self) -> int:
    """Returns how many of the pictures that were read so far had to be resized."""
    return len(self.square.changed) if self.square else 0

  @property
  def resized(self) -> str:
    """Returns a text that says how the pictures read so far were resized, or 'none'."""
    return f'centre square, by area to {self.square.size}' if self.brought else 'none'

  def __len__(self) -> int:
    return self.count

  def batches(self, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (index [b], pixels [b, H, W, C]) in order, while threads decode the next batch."""
    for index, found in source.ahead(self.read, self.count, size):
      yield index, np.stack(found)

  def digest(self) -> Any:
    """Returns a sha256 object, to which the caller adds the pixels of all pictures in order."""
    return hashlib.sha256(f'{self.count} {self.shape}\n'.encode())


def load(path: str, flag: str = '--images', size: int = 0) -> Images:
  """Returns the pictures of an .npz file, or of a folder and its subfolders, sorted by path.

  If `size` is above 0, each picture is cropped to the centre square and resized by area to `size`
  pixels a side. If `size` is 0, all pictures must have the size of the first picture. Raises
  DataError if `path` holds no readable pictures; a picture that is damaged or has a wrong size
  raises DataError when the picture is read. `flag` is the command-line flag that gave `path`, for
  error lines.
  """
  found = _load(path, flag, size)
  if not size:
    return found
  square = _Square(found.read, size, path)
  return dataclasses.replace(found, read=square, shape=(size, size, found.shape[2]), square=square)


@dataclasses.dataclass(frozen=True, eq=False)
class _Square:
  """Reads picture i as a square of `size` pixels a side; `changed` holds every resized i."""

  inner: Callable[[int], np.ndarray]
  size: int
  path: str
  changed: set[int] = dataclasses.field(default_factory=set)

  def __call__(self, i: int) -> np.ndarray:
    pixels = self.inner(i)
    if pixels.shape[:2] != (self.size, self.size):
      self.changed.add(i)
    return pictures.checked_square(pixels, f'picture {i} of {self.path}', self.size)


def captions(path: str, images: Images) -> tuple[list[str], tuple[str, ...]]:
  """Returns (captions, notes): the caption of each picture is '<name>.txt' in the folder `path`.

  `<name>` is the picture's path relative to `images.path`, without the suffix. `notes` has a
  message for the user if captions have several lines.
  """
  found, tally = [], caption_files.Tally()
  for name in images.names:
    name = os.path.splitext(os.path.relpath(name, images.path))[0]
    file = os.path.join(path, f'{name}.txt')
    try:
      found.append(tally.caption(caption_files.text_of(file), name))
    except (OSError, ValueError) as e:
      raise errors.DataError(
        f'{file} cannot be read ({errors.brief(e)}); every picture needs a caption in a text file '
        'of the same name, saved as UTF-8'
      ) from e
    if not found[-1]:
      raise errors.DataError(f'{file} is empty; write the caption of the picture into this file')
  return found, tally.notes(path)


def _load(path: str, flag: str, size: int) -> Images:
  if os.path.isdir(path):
    return _folder(path, flag, size)
  if os.path.isfile(path) and path.endswith('.npz'):
    return _npz(path, flag)
  raise errors.DataError(
    f'{flag}={path} is neither a folder of pictures nor an .npz file; give the path of a folder '
    'or of an .npz file: see "Loose pictures" in docs/data.md'
  )


def files(path: str, flag: str) -> tuple[tuple[str, ...], passed_over.Passed]:
  """Returns (sorted paths of all pictures in a folder and its subfolders, what is passed over).

  Hidden and system files are passed over without being counted. Raises DataError if the folder
  holds no pictures, or a link to a picture that does not exist; `flag` is the command-line flag
  that gave `path`, for error lines.
  """

  def unreadable(e):
    raise errors.DataError(
      f'{flag}={path}: {e.filename} cannot be read: {e.strerror}; make the folder readable'
    ) from e

  found, seen, over = [], set(), passed_over.Passed()
  for folder, folders, files in os.walk(path, onerror=unreadable, followlinks=True):
    real = os.path.realpath(folder)
    if real in seen:  # stops loops: a symbolic link may lead to a parent
      above = os.path.realpath(os.path.dirname(folder))
      if os.path.commonpath((above, real)) != real:
        over.add(passed_over.TWICE, (os.path.relpath(folder, path),))
      folders.clear()
      continue
    seen.add(real)
    folders[:] = sorted(filter(passed_over.visible, folders))
    found += [os.path.join(folder, f) for f in files if passed_over.visible(f)]
  sheets = sheet_marks.sheets(found, _head)
  names = [f for f in found if f.lower().endswith(pictures.SUFFIXES) and f not in sheets]
  broken = {f for f in found if os.path.islink(f) and not os.path.exists(f)}
  for name in sorted(broken & set(names)):
    raise errors.DataError(
      f'{flag}={path}: {os.path.relpath(name, path)} is a link to a file that does not exist; add '
      'that file, or remove the link'
    )
  over.add_files(os.path.relpath(f, path) for f in set(found) - {*names, *sheets, *broken})
  over.add(passed_over.LINK, (os.path.relpath(f, path) for f in broken))
  over.add(passed_over.SHEET, (os.path.relpath(f, path) for f in sheets))
  if not names:
    raise errors.DataError(
      f'{flag}={path} holds no pictures ending in {", ".join(pictures.SUFFIXES)}'
      f'{f", but {over}" if over else ""}; give the path of a folder with pictures'
    )
  return tuple(sorted(names)), over


def _head(file: str) -> bytes:
  """Returns the first 4,096 bytes of a file, or b'' if the file cannot be read."""
  try:
    with open(file, 'rb') as f:
      return f.read(4096)
  except OSError:
    return b''


def decoded(file: str, *how: Any) -> np.ndarray:
  """Returns the pixels of a picture file; `how` holds further arguments for pictures.decode."""
  return pictures.decode(file_bytes(file), file, *how)


def file_bytes(file: str) -> bytes:
  """Returns the bytes of a file; raises DataError if the file cannot be read."""
  try:
    with open(file, 'rb') as f:
      return f.read()
  except OSError as e:
    raise errors.DataError(f'{file} cannot be read: {e.strerror}; fix or remove the file') from e


def _folder(path: str, flag: str, size: int) -> Images:
  names, over = files(path, flag)
  small, stamps = (), ()
  if size:
    looks = looked.of_files(path, names)
    names, small, stamps = map(tuple, headers.sifted(names, looks, size))
    over.add(passed_over.SMALL, (os.path.relpath(n, path) for n in small))
  if not names:
    raise errors.DataError(
      f'{flag}={path}: all {len(small):,} pictures, such as {small[0]}, are too small for {size} x '
      f'{size}, because a picture is enlarged at most {pictures.ENLARGED} times; give larger '
      'pictures'
    )
  shape = decoded(names[0]).shape

  def read(i):
    pixels = decoded(names[i])
    if pixels.shape != shape and not size:
      raise errors.DataError(
        f'{names[i]} is {pixels.shape[1]} x {pixels.shape[0]} pixels and {names[0]} is '
        f'{shape[1]} x {shape[0]}; pictures are evaluated at one size: resize all of '
        'them to one size, as your evaluation protocol prescribes'
      )
    return pixels

  return Images(read, len(names), shape, path, names, None, over, small, stamps)


def _npz(path: str, flag: str) -> Images:
  try:
    with np.load(path, allow_pickle=False) as stored:
      found = [n for n in _ARRAYS if n in stored.files]
      pixels = stored[found[0]] if found else None
      has = ', '.join(stored.files)
  # All exceptions are caught, because zipfile, zlib and numpy raise exceptions of their own.
  except Exception as e:
    raise errors.DataError(
      f'{flag}={path} is not readable ({errors.brief(e)}); copy the file again'
    ) from e
  if pixels is None:
    raise errors.DataError(
      f'{flag}={path} holds {has or "no array"}; the array of pixels must be named '
      f'{" or ".join(_ARRAYS)}'
    )
  if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] not in (1, 3):
    raise errors.DataError(
      f'{flag}={path}: {found[0]} is {pixels.dtype}{list(pixels.shape)}, not uint8 [n, H, W, 3]; '
      'save the pictures as uint8, whole numbers from 0 to 255'
    )
  if not len(pixels):
    raise errors.DataError(f'{flag}={path}: {found[0]} holds no pictures; give another file')
  return Images(lambda i: pixels[i], len(pixels), pixels.shape[1:], path)
