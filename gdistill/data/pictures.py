"""Encoded pictures to square uint8 pixels: decode, centre square crop, area resize."""

import functools
import io
import zlib

import numpy as np

from gdistill import errors

SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp')
_MODES = {1: 'L', 3: 'RGB'}
_MOST_PIXELS = 89_000_000  # a few bytes may claim more than memory holds; Pillow warns above this
_PNG = b'\x89PNG\r\n\x1a\n'
_BLOCK = 512  # rows of a picture that are floats at a time


def decode(
  data: bytes, name: str, channels: int = 3, upright: bool = False, under: str = 'white'
) -> np.ndarray:
  """[H, W, channels] uint8 of a JPEG, PNG or WebP, whatever its name ends in.

  Grey and CMYK are converted, transparency lies on `under`, 16 bits lose the lower 8, of an
  animation the first picture counts. EXIF orientation is left alone, as TensorFlow's decoders do,
  or with `upright` obeyed. DataError names the picture. What its format has no checksum for (JPEG,
  WebP) may be damaged unseen.
  """
  import PIL  # heavy, and only these lines need it
  from PIL import Image
  from PIL import ImageOps

  try:
    if data.startswith(_PNG):
      _check_png(data)
    with Image.open(io.BytesIO(data), formats=('JPEG', 'PNG', 'WEBP')) as picture:
      if picture.width * picture.height > _MOST_PIXELS:
        raise ValueError(f'it claims {picture.width} x {picture.height} pixels')
      if upright:
        picture = ImageOps.exif_transpose(picture)
      if picture.mode.startswith('I;16'):  # which Pillow's own conversion would clip
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
      if picture.mode in ('RGBA', 'LA', 'PA') or 'transparency' in picture.info:
        picture = picture.convert('RGBA')
        picture = Image.alpha_composite(Image.new('RGBA', picture.size, under), picture)
      pixels = np.asarray(picture.convert(_MODES[channels]))
  except PIL.UnidentifiedImageError:
    reason = 'it is no JPEG, PNG or WebP' if data else 'it is empty'
    raise errors.DataError(f'{name} is no readable picture: {reason}; mend or remove it') from None
  except Exception as e:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, ...
    reason = errors.brief(e)
    raise errors.DataError(f'{name} is no readable picture: {reason}; mend or remove it') from e
  return pixels.reshape(*pixels.shape[:2], channels)


def convert(pixels: np.ndarray, name: str, channels: int) -> np.ndarray:
  """[H, W, channels] uint8 of a picture that is decoded already; DataError names it."""
  if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in _MODES:
    raise errors.DataError(
      f'{name} is {pixels.dtype}{list(pixels.shape)}, not uint8 [height, width, 1 or 3]; '
      'convert the data set'
    )
  if pixels.shape[2] == channels:
    return pixels
  from PIL import Image

  picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
  return np.asarray(picture.convert(_MODES[channels])).reshape(*pixels.shape[:2], channels)


def _check_png(data: bytes) -> None:
  """Raises ValueError unless the checksums hold that Pillow skips: those of the pixels."""
  start, kind = len(_PNG), b''
  while kind != b'IEND':
    if start + 12 > len(data):
      raise ValueError('it is truncated')
    length, kind = int.from_bytes(data[start : start + 4], 'big'), data[start + 4 : start + 8]
    end = start + 8 + length
    if end + 4 > len(data):
      raise ValueError('it is truncated')
    critical = kind[:1].isupper()  # the others do not touch the pixels
    if critical and zlib.crc32(data[start + 4 : end]) != int.from_bytes(data[end : end + 4], 'big'):
      raise ValueError(f'the checksum of its {kind.decode("latin-1")} part is wrong')
    start = end + 4


def square(pixels: np.ndarray, size: int) -> np.ndarray:
  """[size, size, C] uint8: the centre square, each output pixel the mean of the area it covers.

  The crop and the resize that Salimans & Ho, 2202.00512, give ImageNet 64.
  """
  return fitted(pixels, size, size)


def fitted(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
  """[height, width, C] uint8: the largest centre part of that shape, resized by area.

  Each output pixel is the mean of the area it covers, rounded to nearest. Sums of integers are
  exact in floats: the same bytes on every machine and in every thread.
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
  sums = np.zeros((height, wide, pixels.shape[2]), np.float32)  # at most 255 tall, below 2^24
  for k in range(0, tall, _BLOCK):
    sums += np.tensordot(down[:, k : k + _BLOCK], pixels[k : k + _BLOCK].astype(np.float32), 1)
  both = np.tensordot(sums.astype(np.float64), across.astype(np.float64), (1, 1))  # [i, C, o]
  total = both.transpose(0, 2, 1).astype(np.int64)  # tall wide times the mean
  return ((2 * total + tall * wide) // (2 * tall * wide)).astype(np.uint8)


@functools.lru_cache(maxsize=64)
def _area(side: int, size: int) -> np.ndarray:
  """[size, side]: how far output pixel i and input pixel j overlap, in 1 / size of the latter."""
  edges = np.arange(size + 1) * side
  low = np.maximum(edges[:-1, None], np.arange(side)[None] * size)
  high = np.minimum(edges[1:, None], np.arange(1, side + 1)[None] * size)
  return np.maximum(high - low, 0).astype(np.float32)
