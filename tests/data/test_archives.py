"""Archives are read as the same files would be read on a disk, links included."""

import io
import os
import random
import struct
import tarfile
import zipfile

import labelled
import numpy as np
import packing
import pytest

from gdistill import errors
from gdistill.data import archives
from gdistill.data import folder
from gdistill.data import listings
from gdistill.data import source

KINDS = packing.KINDS
PICTURES = [labelled.encode(np.full((12, 12, 3), k, np.uint8)) for k in range(20)]


def load(path, split='train', **more):
  return folder.load(labelled.settings('folder', path, split=split, **more), labelled.SHAPE)


def examples(found):
  return [
    (data.class_names, data.fingerprint, [value(data, i) for i in range(len(data))])
    for data in found
  ]


def value(data, i):
  pixels, label = data[i]
  return int(pixels[0, 0, 0]), label


def outcome(path, shown):
  """Returns what a user sees of a folder or an archive, with `shown` in the place of the path."""
  try:
    found = load(path)
  except errors.DataError as e:
    return str(e).replace(str(path), shown)
  lines = source.notes(*found)
  return examples(found), [line.replace(str(path), shown) for line in lines]


def tree(path, rng):
  """Writes a random folder of splits and classes, with files and links of all kinds."""
  places = 'train/a', 'train/b', 'train/a/c', 'validation/a', 'validation/b', 'store', 'train', ''
  for k, place in enumerate(places):
    (path / place).mkdir(parents=True, exist_ok=True)
    for n in range(rng.randint(0, 3)):
      suffix = rng.choice(('.png', '.png', '.JPG', '.txt', '.heic', ''))
      labelled.write(path / place / f'{n}{suffix}', PICTURES[k * 2 + n % 2])
  for n in range(rng.randint(0, 5)):
    at = path / rng.choice(places) / f'link{n}{rng.choice(("", ".png"))}'
    to = path / rng.choice([*places, 'train/a/0.png', 'store/1.png', 'store/2', 'nowhere'])
    if rng.random() < 0.2 and to.is_file():
      os.link(to, at)
    else:
      at.symlink_to(os.path.relpath(to, at.parent))


@pytest.mark.parametrize('seed', range(60))
def test_an_archive_is_read_like_the_folder(seed, tmp_path):
  tree(tmp_path / 'set', random.Random(seed))
  kind, top = KINDS[seed % 3], ('', 'top/')[seed % 2]
  archive = packing.packed(tmp_path / 'set', tmp_path / f'set.{kind}', top)
  on_disk, packed = outcome(tmp_path / 'set', 'IT'), outcome(archive, 'IT')
  if isinstance(on_disk, str):  # the errors of disks and archives differ in their advice
    assert isinstance(packed, str), (on_disk, packed)
    assert 'would miss' not in on_disk or packed == on_disk
  else:
    assert packed == on_disk


def test_a_hard_link_and_a_link_to_a_file_without_a_suffix_are_pictures(tmp_path):
  path = tmp_path / 'set'
  labelled.write(path / 'train/a/1.png', PICTURES[1])
  labelled.write(path / 'blobs/f00d', PICTURES[2])
  labelled.write(path / '.annex/beef', PICTURES[3])
  os.link(path / 'train/a/1.png', path / 'train/a/2.png')
  (path / 'train/a/3.png').symlink_to('../../blobs/f00d')
  (path / 'train/a/4.png').symlink_to('../../.annex/beef')
  for kind in KINDS:
    for spool in ('', str(tmp_path / 'spool')):
      archive = packing.packed(path, tmp_path / f'set.{kind}')
      found = listings.listing(str(archive), ['train'], spool)
      data = folder.split(found, 'train', labelled.SHAPE)
      assert [int(data[i][0][0, 0, 0]) for i in range(4)] == [1, 1, 2, 3]


@pytest.mark.parametrize('to', ['../../../out.png', '/etc/passwd', 'gone.png', 'loop.png'])
def test_a_picture_that_is_a_link_to_nothing_is_refused(to, tmp_path):
  labelled.write(tmp_path / 'set/train/a/1.png', PICTURES[0])
  (tmp_path / 'set/train/a/loop.png').symlink_to(to)
  for kind in KINDS:
    archive = packing.packed(tmp_path / 'set', tmp_path / f'set.{kind}')
    with pytest.raises(
      errors.DataError, match=r'train/a/loop\.png is a link to a file that the ar'
    ):
      load(archive, held_out=0.1)


@pytest.mark.parametrize('loose', ['README.md', 'cover.png', 'top/cover.png', 'top/train/x.png'])
@pytest.mark.parametrize('kind', KINDS)
def test_one_top_folder_is_left_out_also_beside_a_loose_file(kind, loose, tmp_path):
  path = tmp_path / 'set'
  for name in ('top/train/a/1.png', 'top/train/b/1.png', loose):
    labelled.write(path / name, PICTURES[0])
  found, _ = load(packing.packed(path, tmp_path / f'set.{kind}'), held_out=0.1)
  assert found.read.names == ['train/a/1.png', 'train/b/1.png']
  assert len(source.notes(found)) == (loose != 'README.md')


def test_class_folders_in_one_top_folder_are_found_without_a_split(tmp_path):
  for name in ('pets/cat/1.png', 'pets/dog/1.png'):
    labelled.write(tmp_path / 'set' / name, PICTURES[0])
  archive = packing.packed(tmp_path / 'set', tmp_path / 'set.tar')
  for split in ('', 'pets'):
    train, _ = load(archive, split=split, held_out=0.1)
    assert train.class_names == ('cat', 'dog')


def test_a_loose_picture_makes_no_class_of_a_top_folder_that_holds_class_folders(tmp_path):
  for name in ('pets/cat/1.png', 'pets/cat/2.png', 'pets/dog/1.png', 'pets/cover.png'):
    labelled.write(tmp_path / 'set' / name, PICTURES[0])
  train, _ = load(packing.packed(tmp_path / 'set', tmp_path / 'set.zip'), split='', held_out=0.1)
  assert train.class_names == ('cat', 'dog')
  assert '1 picture in no class folder (such as cover.png)' in source.notes(train)[0]
  for name in ('cat/1.png', 'cat/2.png', 'cat/3.png', 'cat/old/2.png', 'cat/new/4.png'):
    labelled.write(tmp_path / 'one' / name, PICTURES[0])
  train, _ = load(packing.packed(tmp_path / 'one', tmp_path / 'one.zip'), split='', held_out=0.1)
  assert train.class_names == ('cat',)
  assert '2 pictures in a folder too deep (such as cat/new/4.png)' in source.notes(train)[0]


def test_the_last_part_of_a_split_zip_archive_is_refused_in_a_line(tmp_path):
  # The locator of a zip64 directory says that the directory lies on the second of two disks.
  locator = struct.pack('<4sLQL', b'PK\x06\x07', 1, 0, 2)
  end = struct.pack('<4s4H2LH', b'PK\x05\x06', 1, 1, 0xFFFF, 0xFFFF, 2**32 - 1, 2**32 - 1, 0)
  (tmp_path / 'set.zip').write_bytes(bytes(100) + locator + end)
  with pytest.raises(errors.DataError, match=r'set\.zip cannot be read: '):
    load(tmp_path / 'set.zip', held_out=0.1)


def test_names_with_the_backslashes_of_windows_are_folders(tmp_path):
  with zipfile.ZipFile(tmp_path / 'set.zip', 'w') as z:
    for name in ('train/a/1.png', 'train/b/1.png'):
      info = zipfile.ZipInfo(name)
      info.filename = name.replace('/', '\\')
      z.writestr(info, PICTURES[0])
  train, _ = load(tmp_path / 'set.zip', held_out=0.1)
  assert train.class_names == ('a', 'b')


def test_a_zip_archive_that_was_cut_is_said_to_be_no_whole_zip_archive(tmp_path):
  labelled.write(tmp_path / 'set/train/a/1.png', PICTURES[0])
  whole = packing.packed(tmp_path / 'set', tmp_path / 'set.zip').read_bytes()
  labelled.write(tmp_path / 'cut.ZIP', whole[:-30])
  with pytest.raises(errors.DataError, match=r'read: it is no whole zip archive; copy the archive'):
    load(tmp_path / 'cut.ZIP')


@pytest.mark.parametrize('kind', ['folder', *KINDS])
def test_a_link_back_to_a_folder_above_is_no_class(kind, tmp_path):
  path = top = tmp_path / 'set'
  for name in ('train/a/1.png', 'train/b/1.png'):
    labelled.write(top / name, PICTURES[0])
  (top / 'train/loop').symlink_to('..')
  (top / 'train/self').symlink_to('.')
  if kind != 'folder':
    path = packing.packed(top, tmp_path / f'set.{kind}')
  train, _ = load(path, held_out=0.1)
  assert train.class_names == ('a', 'b') and source.notes(train) == ()


def test_pictures_whose_names_lead_up_are_counted(tmp_path):
  up = '../train/a/2.png', 'train/a/../b/3.png', '../../evil/train/a/4.png', 'train/./a/5.png'
  others = '../train/a/notes.txt', 'train/../.git/a/6.png'
  names = ('train/a/1.png', 'train/b/1.png', 'validation/a/1.png', 'validation/b/1.png')
  packed = {kind: tmp_path / f'set.{kind}' for kind in ('zip', 'tar')}
  with zipfile.ZipFile(packed['zip'], 'w') as z, tarfile.open(packed['tar'], 'w') as t:
    for name in (*names, *up, *others):
      z.writestr(name, PICTURES[0])
      member = tarfile.TarInfo(name)
      member.size = len(PICTURES[0])
      t.addfile(member, io.BytesIO(PICTURES[0]))
  for path in packed.values():
    train, held = load(path)
    assert len(train) == len(held) == 2
    assert source.notes(train, held) == (
      f"data.path={path}: passed over 4 pictures with a folder '.' or '..' in the name "
      '(such as ../../evil/train/a/4.png)',
    )


def test_links_that_multiply_are_refused_in_bounded_time(tmp_path, monkeypatch):
  monkeypatch.setattr(archives, '_MOST_MEMBERS', 1000)
  with tarfile.open(tmp_path / 'bomb.tar', 'w') as t:
    member = tarfile.TarInfo('train/a/1.png')
    member.size = len(PICTURES[0])
    t.addfile(member, io.BytesIO(PICTURES[0]))
    for level in range(30):
      for name in 'xy':
        link = tarfile.TarInfo(f'f{level}/{name}')
        link.type, link.linkname = tarfile.SYMTYPE, f'../f{level + 1}' if level < 29 else '../train'
        t.addfile(link)
  with pytest.raises(errors.DataError, match='links of this archive lead to more than 1,000 files'):
    load(tmp_path / 'bomb.tar', held_out=0.1)


@pytest.mark.parametrize('damage', [(b'mtime=', b'mtime:'), (b' mtime=', b'x')])
def test_a_damaged_header_is_not_the_end_of_an_archive(damage, tmp_path):
  path = tmp_path / 'set.tar'
  with tarfile.open(path, 'w', format=tarfile.PAX_FORMAT) as t:
    for k in range(4):
      data = labelled.encode(labelled.pixels_of('train', k % 2, 0))
      member = tarfile.TarInfo(f'train/{"ab"[k % 2]}/{k}.png')
      member.size, member.mtime = len(data), 1.5  # a fraction needs a header of its own
      t.addfile(member, io.BytesIO(data))
  whole = path.read_bytes()
  assert sum(map(len, load(path, held_out=0.5))) == 4
  at = whole.rindex(damage[0])
  path.write_bytes(
    whole[:at] + damage[1].ljust(len(damage[0]), b'x') + whole[at + len(damage[0]) :]
  )
  try:  # Python 3.11 passes over the damaged part, which holds only the time here
    assert sum(map(len, load(path, held_out=0.5))) == 4
  except errors.DataError as e:
    assert str(e).endswith('copy the archive again')


def test_the_depth_of_folders_is_without_limit_in_an_archive_with_a_link():
  deep = '/'.join(map(str, range(1500))) + '/1.png'
  found = archives.tree('x.tar', {deep}, archives.Names(links={'also': '0'}))
  assert found.files.keys() == {deep, 'also' + deep[1:]}
  assert len(found.folders) == 2 * 1500 and not found.broken


def test_a_path_through_too_many_links_is_broken():
  links = {f'{k}/on': f'../{k + 1}' for k in range(100)}
  found = archives.tree('x.tar', {'100/1.png'}, archives.Names(links=links))
  counts = {name.count('/on') for name in found.broken}
  assert counts == {41} and '60/' + 'on/' * 40 + '1.png' in found.files
