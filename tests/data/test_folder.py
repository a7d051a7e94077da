"""Class folders and archives: which pictures count, how they are read, and what is refused."""

import tarfile
import zipfile

import labelled
import numpy as np
import pytest

from gdistill import errors
from gdistill.data import folder

PICTURE = labelled.encode(labelled.pixels_of('train', 0, 0))


def make(path, *names):
  for name in names:
    labelled.write(path / name, PICTURE)
  return path


def load(path, split='train', **more):
  return folder.load(labelled.settings('folder', path, split=split, **more), labelled.SHAPE)


def test_jpeg_png_and_webp_are_found_in_capitals_too(tmp_path):
  make(tmp_path, *(f'train/a/{i}.{s}' for i, s in enumerate(('jpg', 'JPEG', 'Png', 'webp', 'txt'))))
  train, _ = load(tmp_path, held_out=0.1)
  assert len(train) == 4


def test_classes_are_sorted_and_may_lie_at_the_top(tmp_path):
  make(tmp_path, 'b/1.png', 'a/1.png', 'a c/1.png', 'a/deeper/1.png')
  train, _ = load(tmp_path, split='', held_out=0.1)
  assert train.class_names == ('a', 'a c', 'b')
  assert [train[i][1] for i in range(3)] == [0, 1, 2]


def test_what_systems_leave_about_is_no_class_and_no_picture(tmp_path):
  make(
    tmp_path,
    'train/a/1.png',
    'train/.ipynb_checkpoints/1.png',
    'train/a/._1.png',
    '__MACOSX/a/1.png',
  )
  train, _ = load(tmp_path, held_out=0.1)
  assert len(train) == 1 and train.class_names == ('a',)


def test_other_sizes_are_made_square_and_grey_is_converted(tmp_path):
  grey = np.full((30, 20), 77, np.uint8)
  labelled.write(tmp_path / 'train/a/1.png', labelled.encode(grey))
  train, _ = load(tmp_path, held_out=0.1)
  np.testing.assert_array_equal(train[0][0], np.full(labelled.SHAPE, 77))


def test_a_damaged_picture_is_named(tmp_path):
  labelled.write(tmp_path / 'train/a/broken.png', PICTURE[:50])
  train, _ = load(tmp_path, held_out=0.1)
  with pytest.raises(errors.DataError, match=r'train/a/broken\.png is no readable picture'):
    train[0]


def test_a_picture_that_went_away_is_named(tmp_path):
  make(tmp_path, 'train/a/1.png')
  train, _ = load(tmp_path, held_out=0.1)
  (tmp_path / 'train/a/1.png').unlink()
  with pytest.raises(errors.DataError, match=r'1\.png cannot be read: No such file'):
    train[0]


def test_a_dangling_link_is_named(tmp_path):
  make(tmp_path, 'train/a/1.png')
  (tmp_path / 'train/a/2.png').symlink_to('nowhere')
  with pytest.raises(errors.DataError, match=r'2\.png cannot be listed: No such file'):
    load(tmp_path)


@pytest.mark.parametrize('path', ['', '/does/not/exist'])
def test_a_missing_folder_is_refused(path):
  with pytest.raises(errors.DataError, match='is no folder or archive; give the path of the'):
    load(path)


def test_a_missing_split_is_refused_with_what_is_there(tmp_path):
  make(tmp_path, 'train/a/1.png', 'val/a/1.png')
  with pytest.raises(
    errors.DataError,
    match=r'named validation/<class>/.*; it holds train, val; as the split, give the name',
  ):
    load(tmp_path)
  (tmp_path / 'empty').mkdir()
  with pytest.raises(errors.DataError, match='it holds none at all'):
    load(tmp_path / 'empty')


def test_pictures_without_labels_are_refused_in_words(tmp_path):
  make(tmp_path, 'train/a/1.png', 'validation/ILSVRC2012_val_00000001.JPEG')
  with pytest.raises(
    errors.DataError, match=r'validation/ has 1 pictures in no class subfolder.*sort'
  ):
    load(tmp_path)
  with pytest.raises(errors.DataError, match='its top has 1 pictures in no class'):
    load(make(tmp_path / 'flat', '1.png'), split='', held_out=0.1)


def test_the_fingerprint_is_of_names_and_sizes_and_not_of_the_place(
  tmp_path, folder_path, archives
):
  found = {load(p)[0].fingerprint for p in (folder_path, *archives.values())}
  assert len(found) == 1
  copy = make(tmp_path, 'train/a/1.png', 'validation/a/1.png')
  before = load(copy)[0].fingerprint
  with open(copy / 'train/a/1.png', 'ab') as f:
    f.write(b'x')
  assert load(copy)[0].fingerprint != before


def test_an_archive_in_a_spool_reads_like_the_folder(archives, folder_path, tmp_path):
  looks = []
  for kind, path in archives.items():
    found = folder.listing(str(path), str(tmp_path / kind), lambda: looks.append(1))
    data = folder.split(found, 'train', labelled.SHAPE)
    for i, (_, pixels, label) in enumerate(labelled.examples('train')):
      np.testing.assert_array_equal(data[i][0], pixels)
      assert data[i][1] == label
  assert len(looks) == 3 * len(list(folder_path.rglob('*.png')))


def test_nothing_is_unpacked_to_the_names_in_an_archive(tmp_path):
  path = tmp_path / 'in' / 'evil.tar'
  path.parent.mkdir()
  file = make(tmp_path, 'in/x.png') / 'in' / 'x.png'
  with tarfile.open(path, 'w') as t:
    t.add(file, 'train/a/1.png')
    t.add(file, '../../evil.png')
    t.add(file, '/tmp/evil.png')  # noqa: S108
  train, _ = load(path, held_out=0.1)
  assert len(train) == 1
  assert sorted(p.name for p in tmp_path.rglob('*')) == ['evil.tar', 'in', 'x.png']


def test_an_archive_that_grows_too_much_is_refused(tmp_path):
  path = tmp_path / 'bomb.zip'
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED, compresslevel=9) as z:
    for i in range(3):
      z.writestr(f'train/a/{i}.png', bytes(2**25))
  assert path.stat().st_size < 2**18
  with pytest.raises(errors.DataError, match='too much to keep in memory; unpack the archive'):
    load(path)


@pytest.mark.parametrize('data, name, why', [
  (b'', 'x.tar', 'cannot be read'), (b'hello', 'x.zip', 'cannot be read'),
  (b'hello', 'x.rar', 'is a file, but no archive'),
])  # fmt: skip
def test_a_file_that_is_no_archive_is_refused(tmp_path, data, name, why):
  labelled.write(tmp_path / name, data)
  with pytest.raises(errors.DataError, match=why):
    load(tmp_path / name)


def test_a_truncated_archive_is_refused(tmp_path, archives):
  for kind in ('tar', 'tar.xz', 'zip'):
    data = archives[kind].read_bytes()
    labelled.write(tmp_path / f'cut.{kind}', data[: len(data) * 2 // 3 + 100])
    with pytest.raises(
      errors.DataError, match=f'cut.{kind} cannot be read.*copy the archive again'
    ):
      load(tmp_path / f'cut.{kind}')


def test_a_tar_that_ends_early_or_has_a_damaged_header_is_refused(tmp_path, archives):
  with tarfile.open(archives['tar']) as t:
    files = [m for m in t if m.isfile()]
  data = archives['tar'].read_bytes()
  labelled.write(tmp_path / 'cut.tar', data[: files[9].offset])  # a header would begin here
  with pytest.raises(errors.DataError, match='cannot be read: empty header'):
    load(tmp_path / 'cut.tar')
  bad = bytearray(data)
  bad[files[9].offset + 5] ^= 1
  labelled.write(tmp_path / 'bad.tar', bytes(bad))
  with pytest.raises(errors.DataError, match='cannot be read: bad checksum'):
    load(tmp_path / 'bad.tar')
