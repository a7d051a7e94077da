"""The picture files that a flag such as --image or --mask names, and the names of the results."""

import collections
import os
from collections.abc import Sequence
from typing import Any

from gdistill import errors


class Sources:
  """The picture files that a flag names: one file, or all picture files of a folder.

  `stems` are the files' paths relative to the folder, without suffixes. `names` are the names of
  the results: a file's stem or, if that stem is not unique, the stem with the file's suffix.
  `notes` are lines for the user about files that are passed over.
  """

  def __init__(self, path: str, flag: str):
    from gdistill.data import images
    from gdistill.data import sheet_marks

    self.path, self.flag, self.notes = path, flag, ()
    if os.path.isdir(path):
      (self.files, over), top = images.files(path, flag), path
      self.notes = over.notes(f'{flag}={path}')
    elif os.path.isfile(path):
      self.files, top = (path,), os.path.dirname(path) or '.'
    else:
      where = 'must be on this machine' if '://' in path else 'does not exist'
      raise errors.DataError(f'{flag}={path} {where}; give a picture or a folder of pictures')
    paths = [os.path.relpath(f, top) for f in self.files]
    self.stems = [os.path.splitext(p)[0] for p in paths]
    taken = collections.Counter([*self.stems, os.path.splitext(sheet_marks.SHEET)[0]])
    self.names = [s if taken[s] == 1 else p for s, p in zip(self.stems, paths, strict=True)]
    for name, count in collections.Counter(self.names).items():
      if count > 1:
        raise errors.DataError(
          f'{flag}={path} has {count} pictures that would share the name {name}; rename one of '
          'these pictures'
        )

  def __len__(self) -> int:
    return len(self.files)

  def read(self, i: int, channels: int, under: str = 'white') -> Any:
    """Returns picture i, [H, W, channels] uint8, turned upright as its EXIF orientation says.

    Transparent pixels get the background colour `under`.
    """
    from gdistill.data import images

    return images.decoded(self.files[i], channels, under)

  def largest_of_16_bits(self, i: int) -> int:
    """Returns the largest value of picture i if it is 16-bit grey, and 0 for any other picture."""
    from PIL import Image

    with Image.open(self.files[i]) as picture:
      return int(picture.getextrema()[1]) if picture.mode.startswith('I;16') else 0


def fitted(sources: Sources, i: int, pixels: Any, shape: Sequence[int]) -> Any:
  """Returns the pixels of picture i, cropped and resized to the height and width of `shape`.

  Raises DataError if the picture's height or width would be enlarged more than four times.
  """
  from gdistill.data import pictures

  height, width = shape[:2]
  most = pictures.ENLARGED
  if pixels.shape[0] * most < height or pixels.shape[1] * most < width:
    raise errors.DataError(
      f'{sources.flag}={sources.files[i]} is {pixels.shape[1]} x {pixels.shape[0]} pixels, too few '
      f'for the {width} x {height} of the network, because a picture is enlarged at most {most} '
      'times; give a larger picture'
    )
  return pictures.fitted(pixels, height, width)


def inside(out: str, folder: str) -> bool:
  """Returns whether the path `out` lies in `folder`, an existing folder of pictures."""
  top = os.path.join(os.path.abspath(folder), '')
  return os.path.isdir(folder) and os.path.join(os.path.abspath(out), '').startswith(top)


def stamps(*sources: Sources) -> list[list[str]]:
  """Returns [path, sha256 of the bytes] of every file of the sources; every file is read."""
  from gdistill.data import files

  found = []
  for file in (file for some in sources for file in some.files):
    try:
      found.append([file, files.sha256(file)])
    except OSError as e:
      raise errors.DataError(f'{file} cannot be read: {e.strerror}; fix or remove the file') from e
  return found
