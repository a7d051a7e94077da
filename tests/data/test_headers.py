"""Looking at picture files: sizes from headers, and hashes that follow a change of the bytes."""

import io
import os
import warnings

import numpy as np
import pytest
from PIL import Image

from gdistill.data import headers
from gdistill.data import pictures

LARGE = 640, 480  # width and height


def encode(kind, width=70, height=41, mode='RGB', **more):
  pixels = np.random.default_rng(0).integers(0, 256, (height, width, 4), dtype=np.uint8)
  out = io.BytesIO()
  Image.fromarray(pixels, 'RGBA').convert(mode).save(out, kind, **more)
  return out.getvalue()


def exif(orientation=6, extra=0):
  found = Image.Exif()
  found[0x0112] = orientation
  found[0x010E] = 'x' * extra  # a long description moves the header of the picture away
  return found


@pytest.mark.parametrize(
  ('kind', 'more'),
  [
    ('PNG', {}),
    ('PNG', {'mode': 'L'}),
    ('JPEG', {}),
    ('JPEG', {'progressive': True}),
    ('JPEG', {'mode': 'CMYK'}),
    ('JPEG', {'exif': exif(extra=50_000)}),
    ('JPEG', {'comment': b'\xff\xc0' * 9000}),
    ('WEBP', {}),
    ('WEBP', {'lossless': True}),
    ('WEBP', {'mode': 'RGBA'}),
    ('WEBP', {'exif': exif()}),
    ('TIFF', {}),
    ('GIF', {}),
    ('BMP', {}),
  ],
)
def test_width_and_height_are_those_that_the_decoder_finds(kind, more):
  data = encode(kind, **more)
  assert headers.of_bytes(data)[1:] == Image.open(io.BytesIO(data)).size == (70, 41)


def directory_at_the_end():
  """Returns a TIFF file whose directory lies behind the pixels, as several programs write it."""
  data = encode('TIFF', *LARGE)
  first = int.from_bytes(data[4:8], 'little')
  return data[:4] + len(data).to_bytes(4, 'little') + data[8:] + data[first:]


@pytest.mark.parametrize(
  'make',
  [
    *[lambda kind=k: encode(kind, *LARGE) for k in ('PNG', 'JPEG', 'WEBP', 'BMP', 'GIF', 'PPM')],
    *[
      lambda more=m: encode('WEBP', *LARGE, **more) for m in ({'lossless': True}, {'mode': 'RGBA'})
    ],
    *[lambda c=c: encode('TIFF', *LARGE, compression=c) for c in ('raw', 'tiff_lzw')],
    lambda: encode('GIF', *LARGE, comment=b'x' * 50_000),
    lambda: encode('AVIF', *LARGE, quality=100),
    directory_at_the_end,
  ],
)
def test_the_size_of_a_large_picture_is_found_in_a_small_part_of_its_bytes(make):
  try:
    data = make()
  except (KeyError, OSError):
    pytest.skip('this Pillow does not write this format')
  seen = np.zeros(len(data), bool)

  def read(offset, count):
    seen[offset : offset + count] = True
    return data[offset : offset + count]

  assert headers.look(len(data), read)[1:] == LARGE == Image.open(io.BytesIO(data)).size
  assert len(data) > 100_000 and seen.sum() < 90_000


@pytest.mark.parametrize('kind', ['BMP', 'GIF', 'TIFF', 'PPM', 'WEBP'])
@pytest.mark.parametrize('seed', range(20))
def test_a_damaged_header_gives_what_the_decoder_finds(kind, seed):
  rng, data = np.random.default_rng(seed), bytearray(encode(kind, 90, 80, lossless=True))
  for place in rng.integers(4, 40, 2):
    data[place] = rng.integers(256)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    found = headers.of_bytes(bytes(data))[1:]
    try:
      assert found == Image.open(io.BytesIO(data), formats=pictures.formats()).size
    except Exception:
      if kind != 'WEBP':  # the header of this format is read without Pillow
        assert found == (0, 0)


@pytest.mark.parametrize('kind', ['PNG', 'JPEG', 'WEBP'])
def test_a_damaged_header_gives_no_size_and_passes(kind):
  for end in (0, 1, 3, 12, 20):
    found = headers.of_bytes(encode(kind)[:end])
    assert found[1:] == (0, 0) and headers.large_enough([found], 4096)[0]
  assert headers.of_bytes(b'\xff\xd8' + b'\xff' * 30)[1:] == (0, 0)


def test_tables_before_the_frame_of_a_jpeg_are_no_frame():
  data = encode('JPEG')
  place = data.index(b'\xff\xc4')  # a Huffman table, whose marker is one of 0xC0 to 0xCF
  table = data[place : place + 2 + int.from_bytes(data[place + 2 : place + 4], 'big')]
  data = data[:2] + table + data[2:]
  assert headers.of_bytes(data)[1:] == Image.open(io.BytesIO(data)).size == (70, 41)


def test_a_segment_that_ends_behind_its_file_reads_nothing_of_the_next_file():
  data, frame = b'\xff\xd8\xff\xe0\xff\xff' + bytes(100), encode('JPEG')
  spool = io.BytesIO(data + bytes(2**16 + 3 - len(data)) + frame[frame.index(b'\xff\xc0') :])
  assert headers.of_part(spool, 0, len(data)) == headers.of_bytes(data)
  assert headers.of_bytes(data)[1:] == (0, 0)


@pytest.mark.parametrize('length', [1, 5000, 3 * headers.SAMPLE, 3 * headers.SAMPLE + 1, 100_000])
def test_a_hash_follows_the_length_and_the_first_and_last_bytes(length, tmp_path):
  data = np.random.default_rng(length).integers(0, 256, length, dtype=np.uint8).tobytes()
  (tmp_path / 'f').write_bytes(b'junk' + data + b'junk')
  with open(tmp_path / 'f', 'rb') as f:
    assert headers.of_part(f, 4, length) == headers.of_bytes(data)
  seen = {headers.of_bytes(data).stamp, headers.of_bytes(data + b'\0').stamp}
  places = {
    0,
    length // 2 if length <= 3 * headers.SAMPLE else 7,
    length - 1,
    max(0, length - 4096),
  }
  for place in places:
    bad = bytearray(data)
    bad[place] ^= 1
    (tmp_path / 'f').write_bytes(bad)
    seen.add(headers.of_file(str(tmp_path / 'f')).stamp)
  assert len(seen) == 2 + len(places)


def test_a_hash_follows_the_length_of_files_that_begin_and_end_alike():
  assert headers.of_bytes(bytes(50_000)).stamp != headers.of_bytes(bytes(50_001)).stamp


def test_hashes_are_those_of_the_pictures_that_are_large_enough():
  looks = [headers.Look(stamp, side, side) for stamp, side in ((b'a', 16), (b'b', 15), (b'c', 0))]
  assert headers.sifted(['x', 'y', 'z'], looks, 64) == (['x', 'z'], ['y'], [b'a', b'c'])


def test_pixels_without_compression_are_sampled_in_the_middle_too():
  data = b'BM' + bytes(200_000)
  bad = bytearray(data)
  bad[100_000:104_000] = b'\1' * 4000  # a quarter of a percent of the picture is enough here
  assert headers.of_bytes(data).stamp != headers.of_bytes(bytes(bad)).stamp


def test_a_file_that_cannot_be_read_stays_and_hashes_like_no_file(tmp_path):
  found = headers.of_all(headers.of_file, [str(tmp_path / 'gone.png')])
  assert found == [headers.UNREADABLE] and headers.large_enough(found, 64)[0]
  assert found[0].stamp != headers.of_bytes(b'').stamp


def test_many_files_keep_their_order_and_the_work_can_be_stopped(tmp_path):
  (tmp_path / 'a').write_bytes(b'a')
  files = [str(tmp_path / 'a')] * 700
  assert headers.of_all(headers.of_file, files) == [headers.of_bytes(b'a')] * 700

  def stop():
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    headers.of_all(headers.of_file, files, stop)
  assert len(os.listdir('/proc/self/fd')) < 200


def test_the_smallest_picture_is_a_quarter_of_the_side():
  sizes = [(16, 16), (15, 64), (64, 15), (1, 1), (0, 0)]
  looks = [headers.Look(b'', *size) for size in sizes]
  assert headers.large_enough(looks, 64).tolist() == [True, False, False, False, True]
  assert pictures.too_small(15, 64, 64) and not pictures.too_small(16, 64, 64)
