"""Decodes picture files to uint8 pixels; crops pictures to the centre, resizes pictures by area."""

import functools
import io
import zlib
from typing import Any

import numpy as np

from gdistill import errors
from gdistill.data import sheet_marks

# Suffixes of the pictures that are read. WebDataset shards with several pictures in a sample take
# the first of these suffixes, so the order must stay.
SUFFIXES = (
  '.jpg', '.jpeg', '.png', '.webp', '.jfif', '.jpe', '.bmp', '.dib', '.gif', '.tif', '.tiff',
  '.avif', '.ppm', '.pgm', '.pbm', '.pnm',
)  # fmt: skip
# Pillow's names of the formats of these pictures.
FORMATS = 'JPEG', 'PNG', 'WEBP', 'BMP', 'DIB', 'GIF', 'TIFF', 'AVIF', 'PPM'
_MODES = {1: 'L', 3: 'RGB'}
# Largest number of pixels that a picture may have, because a small file can claim a size that fills
# the memory. Pillow itself warns above 89 million pixels.
_MOST_PIXELS = 89_000_000
# Largest factor by which a picture is enlarged.
ENLARGED = 4
# EXIF's tag of the orientation, and Pillow's numbers of the turns that make a picture upright:
# mirror, half turn, mirror upside down, transpose, quarter turn right, transverse, and quarter turn
# left.
_ORIENTATION = 0x112
_TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
# A file with an EXIF orientation or a PNG's transparent colour has at least one of these marks.
_MARKS = (
  b'Exif', b'EXIF', b'eXIf', b'exif', b'tiff:Orientation', b'com.adobe.xmp', b'XMP ', b'tRNS',
)  # fmt: skip
_PNG = b'\x89PNG\r\n\x1a\n'
# Why a picture is read otherwise that earlier versions did not read.
NEW = 'of formats that were passed over and are now read'
_BLOCK = 512  # number of picture rows that are converted to floats at a time, to save memory


class TooSmall(errors.DataError):
  """A picture of fewer pixels than a quarter of the side that the picture is resized to."""


def decode(data: bytes, name: str, channels: int = 3, under: str = 'white') -> np.ndarray:
  """Returns the pixels of a picture file of one of FORMATS, [H, W, channels] uint8.

  `name` is the file's name and is used only in error lines; the format is found from the content of
  `data`, not from the suffix of `name`. The picture is turned upright as its EXIF orientation says.
  Grey and CMYK pictures are converted to `channels` channels. Transparent pixels are blended with
  the colour `under`. Of a 16-bit grey value, only the upper 8 bits are returned. Of an animation,
  only the first frame is decoded, and of a TIFF file only the first page. Raises DataError for a
  picture that cannot be decoded. Some damage to the pixels of files that are no PNG goes unnoticed,
  because other formats have no checksums.
  """
  import PIL  # imported inside the function, because Pillow loads slowly
  from PIL import Image

  try:
    if data.startswith(_PNG):
      _check_png(data)
    if sheet_marks.is_marked(data):
      raise ValueError('it is a contact sheet that gdistill wrote beside its pictures')
    with Image.open(io.BytesIO(data), formats=formats()) as picture:
      if picture.width * picture.height > _MOST_PIXELS:
        raise Image.DecompressionBombError(f'{picture.width} x {picture.height} pixels')
      picture.load()
      turn = _turn(picture)
      picture = _opaque(picture, data, under)
      if turn is not None:
        picture = picture.transpose(turn)
      pixels = np.asarray(picture.convert(_MODES[channels]))
  except PIL.UnidentifiedImageError:
    reason = f'it is none of {", ".join(formats())}' if data else 'it is empty'
    raise errors.DataError(
      f'{name} is no readable picture: {reason}; fix or remove this picture'
    ) from None
  except Image.DecompressionBombError as e:  # Pillow raises this error too, above its own limit
    claimed = str(e) if 'limit' not in str(e) else 'more pixels'
    raise errors.DataError(
      f'{name} is not decoded: it claims {claimed}, and the limit is {_MOST_PIXELS:,} pixels; make '
      'the picture smaller, or remove it'
    ) from e
  except Exception as e:  # Pillow raises OSError, SyntaxError, struct.error and many others
    reason = errors.brief(e)
    raise errors.DataError(
      f'{name} is no readable picture: {reason}; fix or remove this picture'
    ) from e
  return pixels.reshape(*pixels.shape[:2], channels)


def _turn(picture: Any) -> Any:
  """Returns Pillow's number of the turn that makes a picture upright, or None if it is upright."""
  try:
    return _TURNS.get(picture.getexif().get(_ORIENTATION))
  except Exception:  # damaged EXIF data raise many kinds of exceptions, and harm no pixel
    return None


def read_otherwise(data: bytes) -> str:
  """Returns why earlier versions of gdistill decoded a picture file to other pixels, or ''.

  Earlier versions ignored EXIF orientation, and the transparent colour of PNG files of 2, 4 or
  16 bits a channel. They read JPEG, PNG and WebP by content, and took other content for damage.
  """
  was_read = data.startswith((b'\xff\xd8', _PNG)) or data[:4] + data[8:12] == b'RIFFWEBP'
  if was_read and not any(mark in data for mark in _MARKS):
    return ''  # almost all pictures end here, without being decoded
  from PIL import Image

  try:
    with Image.open(io.BytesIO(data), formats=formats()) as picture:
      picture.load()
      if picture.format not in ('JPEG', 'PNG', 'WEBP'):
        return NEW
      if _turn(picture) is not None:
        return 'turned upright as their EXIF orientation says'
      depth = data[24] if data.startswith(_PNG) and 'transparency' in picture.info else 8
      if picture.mode[:1] in 'ILR' and depth in (2, 4, 16):
        return 'with a transparent colour that is now white'
  except Exception:  # a picture that cannot be decoded has no pixels in any version
    return ''
  return ''


def _opaque(picture: Any, data: bytes, under: str) -> Any:
  """Returns a Pillow picture of 8 bits a channel, whose transparent pixels have the colour `under`.

  `data` holds the bytes of the picture's file.
  """
  from PIL import Image

  is_deep = picture.mode.startswith('I;16') or (picture.mode == 'I' and picture.format == 'PPM')
  if picture.mode in ('I', 'F') and not is_deep:
    raise ValueError('its pixels have 32 bits; save it with 8 or 16 bits a channel')
  key, alpha = picture.info.get('transparency'), None
  # 16-bit grey is shifted to 8 bits here, because Pillow would clip the values at 255.
  if is_deep:
    deep = np.asarray(picture)
    picture = Image.fromarray((deep >> 8).astype(np.uint8))
    if isinstance(key, int):
      alpha = Image.fromarray(np.where(deep == key, 0, 255).astype(np.uint8))
  elif data.startswith(_PNG):
    # Pillow scales the pixels to 8 bits, but not the transparent colour.
    depth = data[24]
    if picture.mode == 'RGB' and depth == 16 and key:
      picture.info['transparency'] = tuple(part >> 8 for part in key)
    elif picture.mode == 'L' and depth < 8 and key:
      picture.info['transparency'] = key * 255 // (2**depth - 1)
  if alpha is None and not (picture.mode in ('RGBA', 'LA', 'PA') or key is not None):
    return picture
  picture = picture.convert('RGBA')
  if alpha is not None:
    picture.putalpha(alpha)
  return Image.alpha_composite(Image.new('RGBA', picture.size, under), picture)


def squared(data: bytes, name: str, channels: int, size: int) -> np.ndarray:
  """Returns the centre square of a picture file, resized by area to [size, size, channels] uint8.

  Raises DataError for a picture that cannot be decoded, and TooSmall for a picture that would be
  enlarged more than ENLARGED times.
  """
  return checked_square(decode(data, name, channels), name, size)


def checked_square(pixels: np.ndarray, name: str, size: int, remedy: str = '') -> np.ndarray:
  """Returns `square(pixels, size)`; raises TooSmall if that enlarges more than ENLARGED times.

  `remedy` is the advice with which the error line ends.
  """
  height, width = pixels.shape[:2]
  if too_small(width, height, size):
    raise TooSmall(
      f'{name} is {width} x {height} pixels, too few for {size} x {size}, because a picture is '
      f'enlarged at most {ENLARGED} times; {remedy or "remove this picture, or give a larger one"}'
    )
  return square(pixels, size)


def too_small(width: int, height: int, size: int) -> bool:
  """Returns whether the centre square would be enlarged more than ENLARGED times to `size`."""
  return min(width, height) * ENLARGED < size


@functools.cache
def formats() -> tuple[str, ...]:
  """Returns those of FORMATS that the installed Pillow reads; some builds read no AVIF."""
  from PIL import Image

  Image.init()
  return tuple(f for f in FORMATS if f in Image.OPEN)


def convert(pixels: np.ndarray, name: str, channels: int) -> np.ndarray:
  """Converts decoded pixels to 1 channel (grey) or 3 channels (colour).

  Raises DataError, which names the picture `name`, unless the pixels are uint8 [H, W, 1 or 3].
  """
  if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in _MODES:
    raise errors.DataError(
      f'{name} is {pixels.dtype}{list(pixels.shape)}, not uint8 [height, width, 1 or 3]; '
      'convert the pictures of the data set to that type and shape'
    )
  if pixels.shape[2] == channels:
    return pixels
  from PIL import Image

  picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
  return np.asarray(picture.convert(_MODES[channels])).reshape(*pixels.shape[:2], channels)


def _check_png(data: bytes) -> None:
  """Raises ValueError if a PNG file is truncated or one of its checksums is wrong.

  This check is needed because Pillow does not verify the checksums of the PNG chunks that hold the
  pixels.
  """
  start, kind = len(_PNG), b''
  while kind != b'IEND':
    if start + 12 > len(data):
      raise ValueError('it is truncated')
    length, kind = int.from_bytes(data[start : start + 4], 'big'), data[start + 4 : start + 8]
    end = start + 8 + length
    if end + 4 > len(data):
      raise ValueError('it is truncated')
    critical = kind[:1].isupper()  # an upper-case first letter marks a PNG chunk as critical
    if critical and zlib.crc32(data[start + 4 : end]) != int.from_bytes(data[end : end + 4], 'big'):
      raise ValueError(f'the checksum of its {kind.decode("latin-1")} part is wrong')
    start = end + 4


def square(pixels: np.ndarray, size: int) -> np.ndarray:
  """Returns the centre square of a picture, resized by area to [size, size, C] uint8.

  Salimans & Ho, arXiv 2202.00512, crop and resize ImageNet 64 as `square` does.
  """
  return fitted(pixels, size, size)


def fitted(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
  """Returns the largest centre crop with the aspect height : width, resized to [height, width, C].

  Each output pixel, uint8, is the mean of the input area that the output pixel covers, rounded to
  the nearest integer. The means are computed from sums of integers that floating point holds
  exactly, so the output bytes are the same on every machine.
  """
  rows, columns = pixels.shape[:2]
  if rows * width > columns * height:
    tall, wide = max(1, columns * height // width), columns
  else:
    tall, wide = rows, max(1, rows * width // height)
  top, left = rows // 2 - tall // 2, columns // 2 - wide // 2
  pixels = pixels[top : top + tall, left : left + wide]
  if (tall, wide) == (height, width):
    return np.ascontiguousarray(pixels)
  down, across = _area(tall, height), _area(wide, width)
  # Each entry of `sums` is a whole number of at most 255 * tall < 2^24, so float32 is exact.
  sums = np.zeros((height, wide, pixels.shape[2]), np.float32)
  for k in range(0, tall, _BLOCK):
    sums += np.tensordot(down[:, k : k + _BLOCK], pixels[k : k + _BLOCK].astype(np.float32), 1)
  both = np.tensordot(sums.astype(np.float64), across.astype(np.float64), (1, 1))
  # Each entry of `total` is tall * wide times the mean of an output pixel's area.
  total = both.transpose(0, 2, 1).astype(np.int64)
  return ((2 * total + tall * wide) // (2 * tall * wide)).astype(np.uint8)


@functools.lru_cache(maxsize=64)
def _area(side: int, size: int) -> np.ndarray:
  """Returns [size, side] float32: entry [i, j] is the overlap of output pixel i and input pixel j.

  Overlaps are lengths along one axis, in units of 1 / size of an input pixel, so every overlap is a
  whole number.
  """
  edges = np.arange(size + 1) * side
  low = np.maximum(edges[:-1, None], np.arange(side)[None] * size)
  high = np.minimum(edges[1:, None], np.arange(1, side + 1)[None] * size)
  return np.maximum(high - low, 0).astype(np.float32)
