"""Decoding, cropping and resizing against exact fractions; damaged and hostile files."""

import contextlib
import io
import struct
import warnings
import zlib
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from gdistill import errors
from gdistill.data import pictures


def encode(picture, kind='PNG', **more):
  out = io.BytesIO()
  (Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture).save(out, kind, **more)
  return out.getvalue()


def ramp(height=40, width=50):
  return (
    np.add.outer(np.arange(height) * 3, np.arange(width) * 2)[..., None].repeat(3, 2).astype('u1')
  )


def slow_square(pixels, size):
  """Computes pictures.square from its definition, in exact fractions, pixel by pixel."""
  height, width, channels = pixels.shape
  side = min(height, width)
  top, left = height // 2 - side // 2, width // 2 - side // 2
  step = Fraction(side, size)

  def overlap(i, j):
    return max(Fraction(0), min((i + 1) * step, j + 1) - max(i * step, j))

  out = np.zeros((size, size, channels), np.uint8)
  for y in range(size):
    for x in range(size):
      for c in range(channels):
        total = sum(
          overlap(y, j) * overlap(x, k) * int(pixels[top + j, left + k, c])
          for j in range(side)
          if overlap(y, j)
          for k in range(side)
          if overlap(x, k)
        )
        out[y, x, c] = int(total / step**2 + Fraction(1, 2))  # rounds to nearest, halves up
  return out


@pytest.mark.parametrize('height, width, size', [
  (7, 7, 3), (9, 7, 4), (5, 8, 5), (8, 8, 4), (3, 3, 7), (1, 6, 2), (13, 10, 1), (10, 11, 9),
])  # fmt: skip
def test_every_output_pixel_is_the_mean_of_the_area_it_covers(height, width, size):
  pixels = np.random.default_rng(height).integers(0, 256, (height, width, 2), dtype=np.uint8)
  np.testing.assert_array_equal(pictures.square(pixels, size), slow_square(pixels, size))


def test_a_whole_ratio_is_a_block_mean_also_beyond_one_block_of_rows():
  pixels = np.random.default_rng(0).integers(0, 256, (1280, 1280, 3), dtype=np.uint8)
  total = pixels.reshape(64, 20, 64, 20, 3).astype(np.int64).sum((1, 3))
  np.testing.assert_array_equal(pictures.square(pixels, 64), (total + 200) // 400)


def test_the_largest_pictures_do_not_overflow():
  white = np.full((9400, 9400, 1), 255, np.uint8)
  assert (pictures.square(white, 64) == 255).all()


def test_the_crop_is_that_of_the_paper_where_sizes_are_odd():
  # The data code of the paper starts at h // 2 - w // 2; (h - w) // 2 would be one less.
  pixels = np.arange(4, dtype=np.uint8)[:, None, None].repeat(3, 1)
  np.testing.assert_array_equal(pictures.square(pixels, 3)[:, 0, 0], [1, 2, 3])
  pixels = np.arange(5, dtype=np.uint8)[None, :, None].repeat(3, 0)
  np.testing.assert_array_equal(pictures.square(pixels, 3)[0, :, 0], [1, 2, 3])


@pytest.mark.parametrize('kind, more', [('PNG', {}), ('WEBP', {'lossless': True})])
def test_lossless_files_come_back_as_they_were(kind, more):
  pixels = np.random.default_rng(1).integers(0, 256, (9, 7, 3), dtype=np.uint8)
  np.testing.assert_array_equal(pictures.decode(encode(pixels, kind, **more), 'x'), pixels)


def test_jpeg_is_close_to_what_it_was():
  found = pictures.decode(encode(ramp(), 'JPEG', quality=95), 'x').astype(int)
  assert np.abs(found - ramp()).max() <= 6


def test_grey_becomes_colour_and_colour_grey():
  grey = ramp()[..., 0]
  found = pictures.decode(encode(grey), 'x', 3)
  np.testing.assert_array_equal(found, grey[..., None].repeat(3, 2))
  colour = np.full((4, 4, 3), (255, 0, 0), np.uint8)
  assert (pictures.decode(encode(colour), 'x', 1) == round(0.299 * 255)).all()


def test_sixteen_bit_greys_keep_their_upper_byte():
  deep = (np.arange(12).reshape(3, 4) * 5000 + 77).astype(np.uint16)
  found = pictures.decode(encode(deep), 'x', 1)[..., 0]
  np.testing.assert_array_equal(found, deep // 256)


def test_cmyk_jpegs_have_their_colours():
  red = Image.new('CMYK', (8, 8), (0, 255, 255, 0))
  found = pictures.decode(encode(red, 'JPEG', quality=95), 'x').astype(int)
  assert np.abs(found - (255, 0, 0)).max() <= 3


def test_palettes_are_looked_up():
  colours = np.array([[250, 10, 30], [20, 200, 90]], np.uint8)
  index = np.array([[0, 1], [1, 0]], np.uint8)
  picture = Image.fromarray(index, 'P')
  picture.putpalette(colours.ravel().tolist())
  np.testing.assert_array_equal(pictures.decode(encode(picture), 'x'), colours[index])


def test_what_is_transparent_is_white():
  pixels = np.zeros((2, 2, 4), np.uint8)
  pixels[0, 0] = 10, 20, 30, 255
  found = pictures.decode(encode(pixels), 'x')
  assert found[0, 0].tolist() == [10, 20, 30]
  assert (found[1] == 255).all()
  grey = encode(Image.fromarray(np.array([[0, 90]], np.uint8)), transparency=0)
  assert pictures.decode(grey, 'x', 1).ravel().tolist() == [255, 90]


def test_of_an_animation_the_first_picture_counts():
  first, second = np.full((2, 8, 8, 3), [[[[9]]], [[[200]]]], np.uint8)
  data = encode(
    first, 'WEBP', lossless=True, save_all=True, append_images=[Image.fromarray(second)]
  )
  np.testing.assert_array_equal(pictures.decode(data, 'x'), first)


def test_orientation_is_left_alone():
  exif = Image.Exif()
  exif[0x0112] = 6  # a quarter turn
  assert pictures.decode(encode(ramp(), 'JPEG', exif=exif), 'x').shape == (40, 50, 3)


@pytest.mark.parametrize(
  ('orientation', 'turned'), [(1, lambda a: a), (3, lambda a: a[::-1, ::-1]),
                              (6, lambda a: np.rot90(a, -1)), (8, np.rot90)],
)  # fmt: skip
def test_orientation_is_obeyed_where_pictures_are_to_stand_upright(orientation, turned):
  exif = Image.Exif()
  exif[0x0112] = orientation
  found = pictures.decode(encode(ramp(), exif=exif), 'x', upright=True)
  np.testing.assert_array_equal(found, turned(ramp()))


@pytest.mark.parametrize(
  ('shape', 'size', 'part'),
  [
    ((40, 50), (8, 20), np.s_[10:30, :]),  # wider than the picture
    ((40, 50), (20, 10), np.s_[:, 15:35]),
    ((40, 50), (40, 50), np.s_[:, :]),
    ((6, 6), (12, 12), np.s_[:, :]),  # enlarged
  ],
)
def test_another_shape_is_the_centre_part_of_it_by_area(shape, size, part):
  pixels = ramp(*shape)
  inside = pixels[part].astype(np.float64)
  fine = inside.repeat(size[0], 0).repeat(size[1], 1)  # each output pixel covers a whole block
  blocks = fine.reshape(size[0], inside.shape[0], size[1], inside.shape[1], 3).mean((1, 3))
  found = pictures.fitted(pixels, *size)
  np.testing.assert_array_equal(found, np.floor(blocks + 0.5).astype(np.uint8))


def test_the_name_does_not_decide_the_format():
  data = encode(ramp(), 'PNG')  # ImageNet has one such picture
  np.testing.assert_array_equal(pictures.decode(data, 'n02105855_2933.JPEG'), ramp())


@pytest.mark.parametrize('kind', ['PNG', 'JPEG', 'WEBP'])
def test_a_truncated_file_is_an_error_that_names_it(kind):
  data = encode(ramp(), kind)
  for end in (0, 1, 10, len(data) // 2, len(data) - 9):
    with pytest.raises(errors.DataError, match=r'train/cat/7\.jpg is no readable picture: .*fix'):
      pictures.decode(data[:end], 'train/cat/7.jpg')


def test_every_damaged_bit_of_a_png_is_found():
  data = encode(ramp(8, 8))
  for place in range(8, len(data) - 12):
    for bit in (1, 16, 128):
      bad = bytearray(data)
      bad[place] ^= bit
      with contextlib.suppress(errors.DataError):
        np.testing.assert_array_equal(pictures.decode(bytes(bad), 'x'), ramp(8, 8))


@pytest.mark.parametrize('kind', ['GIF', 'BMP', 'TIFF'])
def test_other_formats_are_refused_in_words(kind):
  with pytest.raises(errors.DataError, match='it is no JPEG, PNG or WebP'):
    pictures.decode(encode(ramp(), kind), 'x')


@pytest.mark.parametrize('side', [9460, 14_000, 100_000])
def test_a_bomb_is_refused_before_it_is_unpacked(side):
  def part(kind, data):
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

  header = struct.pack('>IIBBBBB', side, side, 8, 2, 0, 0, 0)
  parts = part(b'IHDR', header) + part(b'IDAT', zlib.compress(bytes(999))) + part(b'IEND', b'')
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    with pytest.raises(errors.DataError, match='pixels'):
      pictures.decode(b'\x89PNG\r\n\x1a\n' + parts, 'x')


def test_decoded_pictures_are_converted_or_refused():
  grey = ramp()[..., :1]
  np.testing.assert_array_equal(pictures.convert(grey, 'x', 3), ramp())
  np.testing.assert_array_equal(pictures.convert(ramp(), 'x', 3), ramp())
  assert pictures.convert(ramp(), 'x', 1).shape == (40, 50, 1)
  with pytest.raises(errors.DataError, match=r'example 3 is float32\[40, 50, 3\], not uint8'):
    pictures.convert(ramp().astype(np.float32), 'example 3', 3)
