"""Class folders and archives: which pictures count, how they are read, and what is refused."""

import os
import pathlib
import shutil
import stat
import tarfile
import zipfile

import labelled
import numpy as np
import packing
import pytest

from gdistill import errors
from gdistill.data import folder
from gdistill.data import listings
from gdistill.data import sheet_marks
from gdistill.data import source

PICTURE = labelled.encode(labelled.pixels_of('train', 0, 0))


def make(path, *names):
  for name in names:
    labelled.write(path / name, PICTURE)
  return path


def load(path, split='train', **more):
  return folder.load(labelled.settings('folder', path, split=split, **more), labelled.SHAPE)


def test_every_suffix_is_found_in_capitals_too(tmp_path):
  kinds = ('jpg', 'JPEG', 'Png', 'webp', 'bmp', 'GIF', 'tif', 'tiff', 'jfif', 'avif', 'ppm', 'txt')
  make(tmp_path, *(f'train/a/{i}.{s}' for i, s in enumerate(kinds)))
  train, _ = load(tmp_path, held_out=0.01)
  assert len(train) == len(kinds) - 1


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


def test_a_picture_that_cannot_be_opened_stays_until_it_is_read(tmp_path):
  make(tmp_path, 'train/a/1.png', 'train/a/3.png')
  os.mknod(tmp_path / 'train/a/2.png', 0o600 | stat.S_IFSOCK)  # also root cannot open a socket
  reasons = []
  examples = [(data, i) for data in load(tmp_path, held_out=0.1) for i in range(len(data))]
  for data, i in examples:
    try:
      data[i]
    except errors.DataError as e:
      reasons.append(str(e))
  [reason] = reasons
  assert 'train/a/2.png cannot be read: ' in reason and reason.endswith('fix or remove the file')


def test_a_picture_that_went_away_is_named(tmp_path):
  make(tmp_path, 'train/a/1.png')
  train, _ = load(tmp_path, held_out=0.1)
  (tmp_path / 'train/a/1.png').unlink()
  with pytest.raises(errors.DataError, match=r'1\.png cannot be read: No such file'):
    train[0]


@pytest.mark.parametrize('target', ['nowhere', '2.png'])
def test_a_link_to_a_picture_that_does_not_exist_is_refused_in_words(tmp_path, target):
  make(tmp_path, 'train/a/1.png')
  (tmp_path / 'train/a/2.png').symlink_to(target)
  with pytest.raises(
    errors.DataError, match=r'^data\.path=.*: train/a/2\.png is a link to a file that does not e'
  ):
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
    found = listings.listing(str(path), ['train'], str(tmp_path / kind), lambda: looks.append(1))
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


def notes(*sources):
  return source.notes(*sources)


def test_what_is_passed_over_is_counted_by_reason_with_an_example(tmp_path):
  make(tmp_path, 'train/a/1.png', 'train/a/x/2.png', 'train/a/x/y/3.png', 'train/loose.png')
  make(tmp_path, 'top.png', 'train/b/1.png', 'validation/a/1.png', 'validation/b/1.png')
  make(tmp_path, 'train/a/p.heic', 'train/a/notes.txt', 'train/b/words', 'validation/a/n/1.png')
  make(tmp_path, 'train/a/Thumbs.db', 'train/.DS_Store', 'train/@eaDir/a/1.png', 'test/a/b/1.png')
  (tmp_path / 'train/a/gone').symlink_to('nowhere')
  train, held = load(tmp_path)
  assert len(train) == 2 and len(held) == 2
  where = f'data.path={tmp_path}: passed over '
  assert notes(train) == (
    f'{where}2 pictures in a folder too deep (such as train/a/x/2.png), '
    '2 pictures in no class folder (such as top.png), '
    '1 picture of a format that is not read (such as train/a/p.heic), '
    '2 files without the suffix of a picture (such as train/a/notes.txt), '
    '1 link to a place that does not exist (such as train/a/gone)',
  )
  assert notes(held) == (f'{where}1 picture in a folder too deep (such as validation/a/n/1.png)',)
  assert notes(train, held) == notes(train) + notes(held)
  parts = source.held_out(train, 0.0)
  assert notes(*parts) == notes(train)  # once, although both parts read the same folder


def test_nothing_passed_over_is_not_told(folder_path):
  assert notes(*load(folder_path)) == ()


@pytest.mark.parametrize('name, why', [
  ('train/b/deep/1.png', r'1 picture in a folder too deep \(such as train/b/deep/1\.png\)'),
  ('train/b/1.heic', r'1 picture of a format that is not read \(such as train/b/1\.heic\)'),
  ('train/b/1.txt', r'1 file without the suffix of a picture'),
  ('train/b/.hidden.png', 'nothing, because nothing is there'),
])  # fmt: skip
@pytest.mark.parametrize('kind', ['folder', 'zip', 'tar'])
def test_a_class_folder_without_pictures_is_refused_by_name(kind, name, why, tmp_path):
  top = make(tmp_path / 'set', 'train/a/1.png', 'validation/a/1.png', name)
  path = top if kind == 'folder' else packing.packed(top, tmp_path / f'set.{kind}')
  said = (
    f'class folder train/b has no pictures, so training would miss this class; .*{why}.*; put '
    'pictures directly into train/b'
  )
  with pytest.raises(errors.DataError, match=said):
    load(path)
  with pytest.raises(errors.DataError, match=said):
    load(path, held_out=0.1)


def test_many_class_folders_without_pictures_are_counted(tmp_path):
  make(tmp_path, 'a/1.png', *(f'c{k}/deep/1.png' for k in range(7)))
  with pytest.raises(errors.DataError, match='class folders c0, c1, c2, c3, c4 and 2 more have no'):
    load(tmp_path, split='', held_out=0.1)


def test_a_broken_link_in_the_place_of_a_class_is_refused(tmp_path):
  make(tmp_path, 'train/a/1.png')
  (tmp_path / 'train/b').symlink_to('nowhere')
  with pytest.raises(
    errors.DataError, match=r'class folder train/b has no pictures.*1 link to a pl'
  ):
    load(tmp_path, held_out=0.1)


def test_an_empty_class_folder_in_the_held_out_split_is_told_with_the_difference(tmp_path):
  make(tmp_path, 'train/a/1.png', 'train/b/1.png', 'validation/a/1.png', 'validation/b/x/1.png')
  with pytest.raises(errors.DataError, match=r"only 'train' has 'b'; .*validation/b/x/1\.png"):
    load(tmp_path)
  make(tmp_path, 'validation/b/1.png', 'validation/c/x.txt')
  assert '1 folder without a picture (such as validation/c)' in notes(load(tmp_path)[1])[0]


def test_a_held_out_share_that_empties_a_class_is_refused(tmp_path):
  make(tmp_path, 'train/a/1.png', 'train/b/1.png', 'train/b/2.png', 'train/b/3.png')
  with pytest.raises(
    errors.DataError, match=r"held_out=0.6 holds out all 1 examples of the class 'a"
  ):
    load(tmp_path, held_out=0.6)


def test_where_the_pictures_lie_is_advised(tmp_path):
  make(tmp_path, 'set/train/a/1.png', 'set/train/b/1.png')
  with pytest.raises(errors.DataError, match=f'lies in set/: set data.path={tmp_path}/set:'):
    load(tmp_path, held_out=0.1)
  with pytest.raises(errors.DataError, match='class folders as the split, such as train'):
    load(tmp_path / 'set', split='', held_out=0.1)
  assert len(load(tmp_path, split='set/train', held_out=0.1)[0]) == 2
  make(tmp_path, 'other/train/a/1.png')
  archive = packing.packed(tmp_path, tmp_path / 'two.zip')
  with pytest.raises(
    errors.DataError, match=r'lies in other/: unpack the archive and set data.path'
  ):
    load(archive, held_out=0.1)


def test_class_folders_at_the_top_are_advised_without_a_split(tmp_path):
  make(tmp_path / 'top', 'cat/1.png', 'cat/2.png', 'cat/old/1.png', 'dog/1.png')
  said = (
    r"s cat, dog; the class folders lie directly in it: set data\.split='' and data\.held_out=0"
  )
  for more in ({'held_out': 0.1}, {}, {'split': ''}):
    with pytest.raises(errors.DataError, match=said):
      load(tmp_path / 'top', **more)
  make(tmp_path / 'other', 'train/a/1.png', 'train/a/2.png', 'train/1.png')
  with pytest.raises(errors.DataError, match=r'or use no held-out split and set data\.held_out=0'):
    load(tmp_path / 'other')


def test_links_on_the_disk_are_followed_and_circles_end(tmp_path):
  make(tmp_path, 'store/1.png', 'store/2.png', 'train/a/3.png')
  (tmp_path / 'train/b').symlink_to('../store')
  (tmp_path / 'train/a/4.png').symlink_to('../../store/1.png')
  (tmp_path / 'train/a/all').symlink_to('..')
  train, _ = load(tmp_path, held_out=0.1)
  assert train.read.names == ['train/a/3.png', 'train/a/4.png', 'train/b/1.png', 'train/b/2.png']
  assert notes(train) == ()


def test_a_contact_sheet_of_gdistill_is_passed_over(tmp_path):
  pixels = labelled.pixels_of('train', 0, 0)
  marked = sheet_marks.marked(PICTURE)
  for name, data in (
    ('train/a/label0_seed0.png', PICTURE), ('train/a/grid.png', PICTURE),  # of an earlier version
    ('train/b/1.png', PICTURE), ('train/b/grid.png', marked),
    ('train/c/1.png', PICTURE), ('train/c/sheet.png', PICTURE), ('train/c/request.json', b'{}'),
    ('train/d/1.png', PICTURE), ('train/d/grid.png', PICTURE),  # a picture of somebody else
  ):  # fmt: skip
    labelled.write(tmp_path / 'set' / name, data)
  for path in (
    tmp_path / 'set',
    *(packing.packed(tmp_path / 'set', tmp_path / f's.{k}') for k in packing.KINDS),
  ):
    train, _ = load(path, held_out=0.1)
    assert len(train) == 5
    np.testing.assert_array_equal(train[4][0], pixels)
    assert notes(train) == (
      f'data.path={path}: passed over 3 contact sheets that gdistill wrote (such as '
      'train/a/grid.png)',
    )


def test_tiny_pictures_are_passed_over_and_a_class_of_them_is_refused(tmp_path):
  tiny = labelled.encode(np.zeros((2, 90, 3), np.uint8))  # a quarter of 12 pixels is 3
  labelled.write(make(tmp_path, 'train/a/1.png', 'train/b/1.png') / 'train/b/2.png', tiny)
  train, _ = load(tmp_path, held_out=0.1)
  assert [train.read.name(i) for i in range(len(train))] == ['train/a/1.png', 'train/b/1.png']
  assert '1 picture below a quarter of the side' in train.changed and 'b/2.png' in train.changed
  labelled.write(tmp_path / 'train/c/1.png', tiny)
  [note] = notes(train)
  assert 'passed over 1 picture below a quarter of the side that pictures are resized to' in note
  with pytest.raises(errors.DataError, match=r'train/c has no pictures.*1 picture below a quarter'):
    load(tmp_path, held_out=0.1)


@pytest.mark.parametrize('kind', ['folder', 'tar', 'zip'])
def test_another_picture_of_the_same_length_is_other_data(tmp_path, kind):
  file = make(tmp_path / 'set', 'train/a/1.png', 'train/a/2.png') / 'train/a/1.png'

  def printed():
    path = tmp_path / 'set'
    if kind != 'folder':
      path = pathlib.Path(shutil.make_archive(tmp_path / kind, kind, tmp_path / 'set'))
    return load(path, held_out=0.5)[0].fingerprint

  before = printed()
  os.utime(file, (10**9, 10**9))  # a zip archive knows no time before 1980
  assert printed() == before
  file.write_bytes(PICTURE[:-5] + b'other')
  assert printed() != before
