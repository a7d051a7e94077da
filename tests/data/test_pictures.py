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
from PIL import features

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


@pytest.mark.parametrize('kind', ['PNG', 'JPEG', 'WEBP'])
@pytest.mark.parametrize('orientation', range(10))
def test_pictures_stand_upright_as_exif_says(orientation, kind):
  # The turns are those of the standard: where the first row and the first column of the file are.
  upright = {
    2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2), 6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90,
  }.get(orientation, lambda a: a)  # fmt: skip
  exif = Image.Exif()
  exif[0x0112] = orientation
  data = encode(ramp(), kind, exif=exif)
  as_stored = pictures.decode(encode(ramp(), kind), 'x')
  np.testing.assert_array_equal(pictures.decode(data, 'x'), upright(as_stored))


def test_damaged_exif_data_harm_no_picture():
  exif = Image.Exif()
  exif[0x0112] = 6
  data = encode(ramp(), 'JPEG', exif=exif)
  place = data.index(b'Exif')
  plain = pictures.decode(encode(ramp(), 'JPEG'), 'x')
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    for junk in (b'\xff' * 30, b'MM\0*\0\0\xff\xf0' + b'\x09' * 22):
      bad = data[: place + 6] + junk[: len(exif.tobytes()) - 6] + data[place + 6 + len(junk) :]
      with contextlib.suppress(errors.DataError):  # the junk may reach beyond the EXIF data
        np.testing.assert_array_equal(pictures.decode(bad, 'x'), plain)


def png(colour, depth, rows, width, key=b''):
  """Returns a PNG file by its definition: `rows` of bytes, and the bytes of a tRNS chunk."""

  def part(kind, data):
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

  header = struct.pack('>IIBBBBB', width, len(rows), depth, colour, 0, 0, 0)
  palette = part(b'PLTE', bytes(range(90))) if colour == 3 else b''
  return b''.join((
    b'\x89PNG\r\n\x1a\n', part(b'IHDR', header), palette, part(b'tRNS', key) if key else b'',
    part(b'IDAT', zlib.compress(b''.join(b'\0' + row for row in rows))), part(b'IEND', b''),
  ))  # fmt: skip


@pytest.mark.parametrize(
  ('colour', 'depth', 'row', 'key', 'found'),
  [
    (0, 16, '7700 77ff 7800', '77ff', [0x77, 'white', 0x78]),
    (0, 16, '0000 0001 ffff', '0000', ['white', 0, 255]),
    (4, 16, '1000 ffff 2000 0000', '', [0x10, 'white']),
    (4, 16, '0000 80ff', '', [255 - 0x80]),
    (0, 8, '05 06 05', '0005', ['white', 6, 'white']),
    (0, 4, '12 30', '0002', [17, 'white', 51, 0]),
    (0, 2, '1b', '0001', [0, 'white', 170, 255]),
    (0, 1, 'a0', '0001', ['white', 0, 'white', 0]),
    (2, 16, '1e00 2e00 3e00 1f00 2e00 3e00', '1e00 2e00 3e00', ['white', (0x1F, 0x2E, 0x3E)]),
    (2, 16, '0000 0000 0000 1e1e 0000 0000', '1e1e 0000 0000', [(0, 0, 0), 'white']),
    (2, 8, '1e2e3e 1f2e3e', '001e 002e 003e', ['white', (0x1F, 0x2E, 0x3E)]),
    (3, 8, '00 01', 'ff00', [(0, 1, 2), 'white']),
    (3, 4, '12', 'ff00', ['white', (6, 7, 8)]),
    (3, 8, '00 01', '80', [(127, 128, 128), (3, 4, 5)]),
  ],
)  # fmt: skip
def test_transparent_colours_of_every_depth_are_white(colour, depth, row, key, found):
  row = bytes.fromhex(row)
  pixels = pictures.decode(png(colour, depth, [row, row], len(found), bytes.fromhex(key)), 'x')
  wanted = np.array([(255,) * 3 if f == 'white' else np.broadcast_to(f, 3) for f in found])
  assert np.abs(pixels.astype(int) - wanted).max() <= 1  # blended values are rounded


@pytest.mark.parametrize(
  ('colour', 'depth', 'row', 'key', 'white'),
  [
    (0, 16, '7700 77ff', '77ff', True),
    (2, 16, '1e00 2e00 3e00 1f00 2e00 3e00', '1e00 2e00 3e00', True),
    (0, 4, '12', '0002', True), (0, 2, '10', '0001', True),
    (0, 1, 'a0', '0001', False), (0, 8, '05 06', '0005', False),
    (2, 8, '1e2e3e 1f2e3e', '001e 002e 003e', False), (3, 4, '12', 'ff00', False),
    (0, 16, '7700 77ff', '', False), (4, 16, '1000 ffff 2000 0000', '', False),
  ],
)  # fmt: skip
def test_a_transparent_colour_that_earlier_versions_ignored_is_told(colour, depth, row, key, white):
  data = png(colour, depth, [bytes.fromhex(row)], 2, bytes.fromhex(key))
  wanted = 'with a transparent colour that is now white' if white else ''
  assert pictures.read_otherwise(data) == wanted


@pytest.mark.parametrize('kind', ['JPEG', 'WEBP'])
def test_an_orientation_in_xmp_data_is_told_where_it_turns_a_picture(kind):
  xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
  data, plain = encode(ramp(), kind, xmp=xmp), encode(ramp(), kind)
  turned = pictures.decode(data, 'x').shape != pictures.decode(plain, 'x').shape
  assert bool(pictures.read_otherwise(data)) == turned


def test_a_turned_transparent_16_bit_picture_is_both():
  exif = Image.Exif()
  exif[0x0112] = 8
  deep = np.array([[0x1100, 0x2200], [0x3300, 0x4400], [0x1100, 0x5500]], np.uint16)
  grey = encode(Image.fromarray(deep), exif=exif, transparency=0x1100)
  data = png(0, 16, [r.astype('>u2').tobytes() for r in deep], 2, b'\x11\0')
  place = grey.index(b'eXIf') - 4
  length = 12 + int.from_bytes(grey[place : place + 4], 'big')
  data = data[:33] + grey[place : place + length] + data[33:]  # after IHDR
  upright = np.array([[0x22, 0x44, 0x55], [255, 0x33, 255]])
  np.testing.assert_array_equal(pictures.decode(data, 'x', 1)[..., 0], upright)


@pytest.mark.parametrize(('height', 'width', 'ok'), [
  (16, 16, True), (15, 900, False), (900, 15, False), (1, 1, False), (16, 90, True),
])  # fmt: skip
def test_no_picture_is_enlarged_more_than_four_times(height, width, ok):
  data = encode(np.zeros((height, width, 3), np.uint8))
  if ok:
    assert pictures.squared(data, 'x', 3, 64).shape == (64, 64, 3)
    return
  said = f'cat/1.png is {width} x {height} pixels, too few for 64 x 64, .* at most 4 times'
  with pytest.raises(pictures.TooSmall, match=said):
    pictures.squared(data, 'cat/1.png', 3, 64)


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


@pytest.mark.parametrize('kind', ['BMP', 'DIB', 'GIF', 'TIFF', 'PPM'])
@pytest.mark.parametrize('channels', [1, 3])
def test_formats_without_loss_give_the_pixels(kind, channels):
  grey = ramp()[..., 0]  # 256 values at most, so GIF keeps them
  found = pictures.decode(encode(grey, kind), 'x', channels)
  np.testing.assert_array_equal(found, grey[..., None].repeat(channels, 2))


def test_avif_is_read_where_pillow_reads_it():
  if not features.check('avif'):
    pytest.skip('this Pillow was built without AVIF: install a newer Pillow')
  found = pictures.decode(encode(ramp(), 'AVIF', quality=100), 'x')
  assert np.abs(found.astype(int) - ramp()).max() < 8


@pytest.mark.parametrize('kind', ['GIF', 'TIFF'])
def test_of_several_frames_or_pages_the_first_counts(kind):
  frames = [Image.fromarray(np.full((8, 9), v, np.uint8)) for v in (40, 200)]
  data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
  np.testing.assert_array_equal(pictures.decode(data, 'x', 1), np.full((8, 9, 1), 40))


@pytest.mark.parametrize('kind', ['PPM', 'TIFF', 'PNG'])
def test_of_16_bit_grey_the_upper_8_bits_are_read_in_every_format(kind):
  values = np.array([[0, 255, 256, 65_535, 0x1234]], np.uint16)
  found = pictures.decode(encode(values, kind), 'x', 1)
  np.testing.assert_array_equal(found[0, :, 0], [0, 0, 1, 255, 0x12])


@pytest.mark.parametrize('kind', [np.int32, np.float32])
def test_32_bits_a_pixel_are_refused(kind):
  with pytest.raises(errors.DataError, match=r'32 bits.*save it with 8 or 16 bits'):
    pictures.decode(encode(ramp()[..., 0].astype(kind), 'TIFF'), 'x')


@pytest.mark.parametrize('kind', ['TGA', 'ICO', 'PCX', 'JPEG2000'])
def test_other_formats_are_refused_in_words(kind):
  with pytest.raises(errors.DataError, match='it is none of JPEG, PNG, WEBP, BMP'):
    pictures.decode(encode(ramp(), kind), 'x')


@pytest.mark.parametrize('side', [9460, 14_000, 100_000])
def test_a_bomb_is_refused_before_it_is_unpacked(side):
  def part(kind, data):
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

  header = struct.pack('>IIBBBBB', side, side, 8, 2, 0, 0, 0)
  parts = part(b'IHDR', header) + part(b'IDAT', zlib.compress(bytes(999))) + part(b'IEND', b'')
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    with pytest.raises(errors.DataError, match=r'x is not decoded.* is 89,000,000 pixels'):
      pictures.decode(b'\x89PNG\r\n\x1a\n' + parts, 'x')


def test_decoded_pictures_are_converted_or_refused():
  grey = ramp()[..., :1]
  np.testing.assert_array_equal(pictures.convert(grey, 'x', 3), ramp())
  np.testing.assert_array_equal(pictures.convert(ramp(), 'x', 3), ramp())
  assert pictures.convert(ramp(), 'x', 1).shape == (40, 50, 1)
  with pytest.raises(errors.DataError, match=r'example 3 is float32\[40, 50, 3\], not uint8'):
    pictures.convert(ramp().astype(np.float32), 'example 3', 3)
