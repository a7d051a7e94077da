"""Decodes picture files to uint8 pixels; crops pictures to the centre, resizes pictures by area."""

import functools
import io
import zlib

import numpy as np

from gdistill import errors

SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp')
_MODES = {1: 'L', 3: 'RGB'}
# Largest number of pixels that a picture may have, because a small file can claim a size that fills
# the memory. Pillow itself warns above 89 million pixels.
_MOST_PIXELS = 89_000_000
_PNG = b'\x89PNG\r\n\x1a\n'
_BLOCK = 512  # number of picture rows that are converted to floats at a time, to save memory


def decode(
  data: bytes, name: str, channels: int = 3, upright: bool = False, under: str = 'white'
) -> np.ndarray:
  """Returns the pixels of a JPEG, PNG or WebP file, [H, W, channels] uint8.

  `name` is the file's name and is used only in error lines; the format is found from the content of
  `data`, not from the suffix of `name`. Grey and CMYK pictures are converted to `channels`
  channels. Transparent pixels are blended with the colour `under`. Of a 16-bit grey value, only the
  upper 8 bits are returned. Of an animation, only the first frame is decoded. EXIF orientation is
  ignored, as in TensorFlow's decoders, unless `upright` is True. Raises DataError for a picture
  that cannot be decoded. Some damage to the pixels of JPEG and WebP files goes unnoticed, because
  these two formats have no checksums.
  """
  import PIL  # imported inside the function, because Pillow loads slowly
  from PIL import Image
  from PIL import ImageOps

  try:
    if data.startswith(_PNG):
      _check_png(data)
    with Image.open(io.BytesIO(data), formats=('JPEG', 'PNG', 'WEBP')) as picture:
      if picture.width * picture.height > _MOST_PIXELS:
        raise ValueError(f'it claims {picture.width} x {picture.height} pixels, too many to decode')
      if upright:
        picture = ImageOps.exif_transpose(picture)
      # 16-bit grey is shifted to 8 bits here, because Pillow would clip the values at 255.
      if picture.mode.startswith('I;16'):
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
      if picture.mode in ('RGBA', 'LA', 'PA') or 'transparency' in picture.info:
        picture = picture.convert('RGBA')
        picture = Image.alpha_composite(Image.new('RGBA', picture.size, under), picture)
      pixels = np.asarray(picture.convert(_MODES[channels]))
  except PIL.UnidentifiedImageError:
    reason = 'it is no JPEG, PNG or WebP' if data else 'it is empty'
    raise errors.DataError(
      f'{name} is no readable picture: {reason}; fix or remove this picture'
    ) from None
  except Exception as e:  # Pillow raises OSError, SyntaxError, struct.error and many others
    reason = errors.brief(e)
    raise errors.DataError(
      f'{name} is no readable picture: {reason}; fix or remove this picture'
    ) from e
  return pixels.reshape(*pixels.shape[:2], channels)


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
