"""Pictures to evaluate: a folder at any depth, or an array in an .npz file."""

import numpy as np
import pytest
from PIL import Image

from gdistill import errors
from gdistill.data import images
from gdistill.data import sheet_marks

PIXELS = np.random.default_rng(0).integers(0, 256, (7, 6, 5, 3), np.uint8)


@pytest.fixture
def folder(tmp_path):
  for i, p in enumerate(PIXELS):
    name = tmp_path / 'pictures' / ('deep/er' if i % 2 else '') / f'{i}.png'
    name.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(p).save(name)
  (tmp_path / 'pictures' / 'notes.txt').write_text('no picture')
  return tmp_path / 'pictures'


def all_of(found, size):
  index, pixels = zip(*found.batches(size), strict=True)
  return np.concatenate(index), np.concatenate(pixels)


@pytest.mark.parametrize('size', [1, 3, 7, 100])
def test_every_picture_comes_once_and_in_order(folder, size):
  found = images.load(str(folder))
  assert len(found) == 7 and found.shape == (6, 5, 3)
  index, pixels = all_of(found, size)
  np.testing.assert_array_equal(index, np.arange(7))
  # Sorted by path: the names at the top begin with a digit and come before 'deep'.
  np.testing.assert_array_equal(pixels, PIXELS[[0, 2, 4, 6, 1, 3, 5]])


@pytest.mark.parametrize('name', ['arr_0', 'pixels', 'samples', 'images'])
def test_an_array_is_read_by_the_names_others_give_it(tmp_path, name):
  np.savez(tmp_path / 'a.npz', **{name: PIXELS, 'arr_1': np.arange(7)})
  found = images.load(str(tmp_path / 'a.npz'))
  np.testing.assert_array_equal(all_of(found, 4)[1], PIXELS)


def digest(path, size=100):
  found = images.load(str(path))
  h = found.digest()
  for _, pixels in found.batches(size):
    h.update(pixels.tobytes())
  return h.hexdigest()


def test_the_digest_is_of_pixels_and_order_not_of_the_place(folder, tmp_path):
  np.savez(tmp_path / 'a.npz', PIXELS[[0, 2, 4, 6, 1, 3, 5]])
  assert digest(tmp_path / 'a.npz', size=2) == digest(folder)
  np.savez(tmp_path / 'b.npz', PIXELS)
  assert digest(tmp_path / 'b.npz') != digest(folder)


@pytest.mark.parametrize('first', [4, 6])
def test_with_a_size_pictures_of_any_sizes_become_squares_of_it(tmp_path, first):
  for i, side in enumerate((first, 8, 4)):
    Image.fromarray(np.full((side, side + 3, 3), 10 * i, np.uint8)).save(tmp_path / f'{i}.png')
  found = images.load(str(tmp_path), size=4)
  assert found.shape == (4, 4, 3)
  expected = np.full((3, 4, 4, 3), [[[[0]]], [[[10]]], [[[20]]]], np.uint8)
  np.testing.assert_array_equal(all_of(found, 2)[1], expected)
  assert found.brought == 3 and found.resized == 'centre square, by area to 4'


def test_pictures_of_the_size_are_left_as_they_are(tmp_path):
  Image.fromarray(PIXELS[0, :5]).save(tmp_path / '0.png')
  found = images.load(str(tmp_path), size=5)
  np.testing.assert_array_equal(all_of(found, 2)[1], PIXELS[:1, :5])
  assert found.brought == 0 and found.resized == 'none'


def test_linked_folders_are_followed_once(tmp_path):
  (tmp_path / 'real').mkdir()
  Image.fromarray(PIXELS[0]).save(tmp_path / 'real' / '0.png')
  (tmp_path / 'set').mkdir()
  (tmp_path / 'set' / 'a').symlink_to(tmp_path / 'real')
  (tmp_path / 'real' / 'back').symlink_to(tmp_path / 'set')
  assert len(images.load(str(tmp_path / 'set'))) == 1


def test_captions_lie_where_their_pictures_do(tmp_path):
  for part in ('pictures', 'words'):
    for place in ('a', 'b'):
      (tmp_path / part / place).mkdir(parents=True)
  for place in ('a', 'b'):
    Image.fromarray(PIXELS[0]).save(tmp_path / 'pictures' / place / '1.png')
    (tmp_path / 'words' / place / '1.txt').write_text(f'\ufeff\n of {place} \r\nand more', 'utf-8')
  found = images.load(str(tmp_path / 'pictures'))
  assert images.captions(str(tmp_path / 'words'), found) == (
    ['of a and more', 'of b and more'],
    (
      f'{tmp_path}/words: 2 of 2 captions have several lines, and all lines of a text are read as '
      "one caption (the first is 'a/1')",
    ),
  )
  (tmp_path / 'words' / 'b' / '1.txt').write_text(' \n')
  with pytest.raises(errors.DataError, match=r'b/1\.txt is empty'):
    images.captions(str(tmp_path / 'words'), found)
  (tmp_path / 'words' / 'a' / '1.txt').write_bytes('of a'.encode('utf-16-le'))
  with pytest.raises(errors.DataError, match=r'a/1\.txt cannot be read .*null characters.*UTF-8'):
    images.captions(str(tmp_path / 'words'), found)


def test_a_truncated_picture_is_named(folder):
  file = folder / 'deep/er/3.png'
  file.write_bytes(file.read_bytes()[:-20])
  with pytest.raises(errors.DataError, match=r'deep/er/3\.png is no readable picture'):
    all_of(images.load(str(folder)), 4)


def test_a_picture_of_another_size_is_named_with_both_sizes(folder):
  Image.fromarray(PIXELS[0, :4]).save(folder / '4.png')
  with pytest.raises(errors.DataError, match=r'4\.png is 5 x 4 pixels and .*0\.png is 5 x 6'):
    all_of(images.load(str(folder)), 4)


@pytest.mark.parametrize(
  ('make', 'words'),
  [
    (lambda f: f.mkdir(), 'holds no pictures ending in'),
    (lambda f: None, 'is neither a folder of pictures nor an .npz file'),
    (lambda f: np.savez(f, other=PIXELS), 'holds other; the array of pixels must be named arr_0'),
    (lambda f: np.savez(f, PIXELS.astype(np.float32)), r'is float32\[7, 6, 5, 3\], not uint8'),
    (lambda f: np.savez(f, PIXELS[0]), 'not uint8'),
    (lambda f: np.savez(f, PIXELS[:0]), 'holds no pictures'),
    (lambda f: f.write_bytes(b'PK\3\4 half a file'), 'is not readable'),
    (lambda f: np.savez(f, np.array([{}], object)), 'is not readable'),
  ],
)
def test_what_cannot_be_measured_is_said(tmp_path, make, words):
  make(tmp_path / 'x.npz')
  with pytest.raises(errors.DataError, match=words):
    images.load(str(tmp_path / 'x.npz'))


def test_what_is_passed_over_is_counted(folder, tmp_path):
  (folder / 'deep/x.heic').write_bytes(b'x')
  (folder / 'deep/Thumbs.db').write_bytes(b'x')
  (folder / '__MACOSX').mkdir()
  (folder / '__MACOSX/0.png').write_bytes(b'x')
  (folder / 'gone').symlink_to('nowhere')
  (folder / 'first').symlink_to('deep')
  (folder / 'grid.png').write_bytes(sheet_marks.marked((folder / '0.png').read_bytes()))
  found = images.load(str(folder))
  assert len(found) == 7
  [note] = found.passed.notes('--images=x')
  assert note.startswith('--images=x: passed over 1 picture of a format that is not read (such as ')
  assert (
    ', 1 file without the suffix of a picture (such as notes.txt), 1 link to a place that' in note
  )
  assert ', 1 folder that another link leads to (such as ' in note
  assert note.endswith(', 1 contact sheet that gdistill wrote (such as grid.png)')


def test_a_link_to_a_picture_that_does_not_exist_is_refused_before_any_is_read(folder):
  (folder / 'deep/gone.png').symlink_to('nowhere')
  with pytest.raises(errors.DataError, match=r'^--images=.*: deep/gone\.png is a link to a file t'):
    images.load(str(folder))


def test_a_folder_of_other_files_says_which(tmp_path):
  (tmp_path / 'a.heic').write_bytes(b'x')
  with pytest.raises(
    errors.DataError, match=r'holds no pictures .*, but 1 picture of a format tha'
  ):
    images.load(str(tmp_path))


def test_a_link_to_the_folder_above_is_not_told(folder):
  (folder / 'deep/up').symlink_to('..')
  found = images.load(str(folder))
  assert len(found) == 7 and 'link' not in str(found.passed)


def test_pictures_that_would_be_enlarged_too_much_are_passed_over(folder):
  Image.fromarray(np.zeros((1, 9), np.uint8)).save(folder / 'tiny.png')
  found = images.load(str(folder), size=20)
  assert len(found) == len(found.stamps) == 7 and found.small == (str(folder / 'tiny.png'),)
  assert len(images.load(str(folder), size=4)) == 8  # 1 pixel is a quarter of 4
  with pytest.raises(errors.DataError, match=r'all 8 pictures, .*, are too small for 25 x 25'):
    images.load(str(folder), size=25)
  np.savez(folder / 'a.npz', PIXELS)
  with pytest.raises(errors.DataError, match='is 5 x 6 pixels, too few for 25 x 25'):
    images.load(str(folder / 'a.npz'), size=25).read(0)
