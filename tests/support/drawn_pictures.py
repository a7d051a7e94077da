"""Draws small pictures in many formats, and knows how each of them looks upright and on white."""

import dataclasses
import io

import numpy as np
from PIL import Image
from PIL import features

_ORIENTATION = 0x112
# What a camera stores of an upright picture, by EXIF orientation.
_STORED = {
  1: lambda u: u,
  2: np.fliplr,
  3: lambda u: np.rot90(u, 2),
  4: np.flipud,
  5: lambda u: np.swapaxes(u, 0, 1),
  6: lambda u: np.rot90(u, 1),
  7: lambda u: np.rot90(np.swapaxes(u, 0, 1), 2),
  8: lambda u: np.rot90(u, -1),
}
# Kinds of pictures; the part of a kind before '_' is the format.
KINDS = (
  'png', 'png_grey', 'png_clear', 'png_palette', 'png_deep', 'png_deepclear', 'png_key', 'png_bit',
  'jpeg', 'jpeg_grey', 'jpeg_cmyk', 'webp', 'webp_clear', 'gif', 'gif_moving', 'bmp', 'tiff',
  'tiff_pages', *(['avif'] if features.check('avif') else []),
)  # fmt: skip
SUFFIXES = {
  'png': ('.png', '.PNG', '.Png'), 'jpeg': ('.jpg', '.JPG', '.jpeg', '.JPEG', '.jfif', '.JFIF'),
  'webp': ('.webp', '.WEBP'), 'gif': ('.gif', '.GIF'), 'bmp': ('.bmp', '.BMP'),
  'tiff': ('.tif', '.tiff', '.TIF', '.TIFF'), 'avif': ('.avif', '.AVIF'),
}  # fmt: skip
_WITH_ORIENTATION = ('png', 'jpeg', 'webp', 'tiff', 'avif')
_OPTIONS = {
  'jpeg': {'quality': 100, 'subsampling': 0}, 'webp': {'lossless': True, 'exact': True},
  'avif': {'quality': 100, 'subsampling': '4:4:4'},
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Drawn:
  """A picture file: its bytes, and `upright`, [H, W, 3] uint8, or None if it cannot be read."""

  data: bytes
  upright: np.ndarray | None
  lossy: bool = False


def draw(rng, kind, height, width):
  """Draws four fields of four colours, so that no turn and no mirror image looks alike."""
  form, _, how = kind.partition('_')
  fields = np.repeat([[0, 1], [2, 3]], [height - height // 2, height // 2], 0)
  fields = np.repeat(fields, [width - width // 2, width // 2], 1)
  colours = rng.permutation([[235, 20, 30], [30, 225, 40], [20, 40, 230], [230, 220, 20]])
  colours = np.clip(colours + rng.integers(-15, 16, (4, 3)), 0, 255).astype(np.uint8)
  turn = int(rng.integers(1, 9)) if form in _WITH_ORIENTATION and rng.integers(3) else 1
  stored, colours, options = _painted(how, _STORED[turn](fields), colours)
  if turn > 1:
    options['exif'] = Image.Exif()
    options['exif'][_ORIENTATION] = turn
  out = io.BytesIO()
  stored.save(out, form.upper(), **options, **_OPTIONS.get(form, {}))
  return Drawn(out.getvalue(), colours[fields], form in ('jpeg', 'avif'))


def damaged(rng, drawn):
  """Returns a file that no reader can show: cut, empty, of another kind, or with a wrong sum."""
  data = drawn.data
  cases = [b'', b'no picture at all', b'<svg></svg>', data[: len(data) // 3], data[:9]]
  if data.startswith(b'\x89PNG'):
    place = data.index(b'IDAT') + 6
    cases += [data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :], data[:-20]]
  return Drawn(cases[rng.integers(len(cases))], None)


def _painted(how, fields, colours):
  """Returns (picture of `fields` for Pillow, the four colours as they are seen, save options)."""
  grey = colours[:, :1] // 2 + np.array([[0], [30], [60], [90]], np.uint8)
  seen_grey = np.repeat(grey, 3, 1)
  white = np.vstack([colours[:3], [[255] * 3]]).astype(np.uint8)
  if how == 'grey':
    return Image.fromarray(grey[fields][..., 0]), seen_grey, {}
  if how == 'clear':
    alpha = np.array([255, 255, 255, 0], np.uint8)
    pixels = np.concatenate([colours, alpha[:, None]], 1)[fields]
    return Image.fromarray(np.ascontiguousarray(pixels)), white, {}
  if how == 'palette':
    picture = Image.fromarray(np.ascontiguousarray(fields.astype(np.uint8)), 'P')
    picture.putpalette(colours.tobytes())
    return picture, colours, {}
  if how in ('deep', 'deepclear'):
    deep = grey[:, 0].astype(np.uint16) * 256 + np.array([0, 9, 255, 77], np.uint16)
    picture = Image.fromarray(np.ascontiguousarray(deep[fields]))
    if how == 'deep':
      return picture, seen_grey, {}
    clear = np.vstack([seen_grey[:3], [[255] * 3]]).astype(np.uint8)
    return picture, clear, {'transparency': int(deep[3])}
  picture = Image.fromarray(np.ascontiguousarray(colours[fields]))
  if how == 'key':
    return picture, white, {'transparency': tuple(map(int, colours[3]))}
  if how == 'bit':
    bits = np.array([255, 0, 0, 0], np.uint8)
    return Image.fromarray(bits[fields]).convert('1'), np.repeat(bits[:, None], 3, 1), {}
  if how == 'cmyk':
    return picture.convert('CMYK'), colours, {}
  if how in ('moving', 'pages'):
    return picture, colours, {'save_all': True, 'append_images': [picture.point(lambda v: 255 - v)]}
  return picture, colours, {}


def squared(upright, size):
  """Returns the squares [size, size, 3] that the centre of a picture may be resized to by area.

  If the longer side exceeds the shorter one by an odd number, there are two centres.
  """
  height, width = upright.shape[:2]
  side = min(height, width)
  found = []
  for top in {(height - side) // 2, (height - side + 1) // 2}:
    for left in {(width - side) // 2, (width - side + 1) // 2}:
      part = upright[top : top + side, left : left + side].astype(float)
      fine = part.repeat(size, 0).repeat(size, 1)  # every pixel becomes size x size small ones
      found.append(fine.reshape(size, side, size, side, 3).mean((1, 3)))
  return found


def is_seen_in(drawn, pixels):
  """Returns whether `pixels` [size, size, 3] show the centre square of `drawn`, upright."""
  errors = [np.abs(one - pixels) for one in squared(drawn.upright, len(pixels))]
  return min(e.mean() for e in errors) < 8 if drawn.lossy else min(e.max() for e in errors) <= 1
