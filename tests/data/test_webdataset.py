"""Shards of pictures and captions: written by tarfile, read in order, and refused when damaged."""

import gzip
import io
import json
import pickle
import tarfile

import labelled
import numpy as np
import pytest
from PIL import Image

from gdistill import errors
from gdistill.data import captions
from gdistill.data import source
from gdistill.data import webdataset

SIZE = labelled.SIZE


def pixels(n):
  return labelled.pixels_of('train', 0, n)


def pack(path, members, form=tarfile.PAX_FORMAT):
  """Writes a tar of the members [(name, bytes or text)]."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with tarfile.open(path, 'w', format=form) as t:
    for name, data in members:
      data = data.encode() if isinstance(data, str) else data
      info = tarfile.TarInfo(name)
      info.size = len(data)
      t.addfile(info, io.BytesIO(data))
  return path


def sample(key, n, caption='', ext='txt'):
  return [(f'{key}.png', labelled.encode(pixels(n))), (f'{key}.{ext}', caption or f'picture {n}')]


def load(path, split=''):
  return captions.split(str(path), 'webdataset', SIZE, split)


def all_of(path):
  """Returns [(pixels, caption)] of every sample."""
  found = load(path)
  return [(found[i][0], found.read.caption(i)) for i in range(len(found))]


def check(found, numbers, words=None):
  assert [c for _, c in found] == (words or [f'picture {n}' for n in numbers])
  for (picture, _), n in zip(found, numbers, strict=True):
    np.testing.assert_array_equal(picture, pixels(n))


@pytest.fixture
def folder(tmp_path):
  for s in range(3):
    members = [*sample(f'{2 * s:04d}', 2 * s), *sample(f'{2 * s + 1:04d}', 2 * s + 1)]
    pack(tmp_path / 'shards' / f'{s:05d}.tar', members)
  return tmp_path / 'shards'


@pytest.mark.parametrize(
  'pattern', ['', '{00000..00002}.tar', '*.tar', '0000{0,1,2}.tar', '0*[0-2].tar']
)
def test_every_sample_of_every_shard_comes_once_and_in_order(folder, pattern):
  check(all_of(folder / pattern), range(6))


def test_braces_stand_for_what_a_shell_makes_of_them():
  assert list(webdataset._expanded('a{08..11}/{x,y}-{1..2}')) == [
    f'a{n}/{c}-{k}' for n in ('08', '09', '10', '11') for c in 'xy' for k in (1, 2)
  ]


def test_a_part_of_the_shards_can_be_named(folder):
  check(all_of(folder / '{00001..00002}.tar'), range(2, 6))
  (folder / 'train').mkdir()
  (folder / '00001.tar').rename(folder / 'train' / 'a.tar')
  found = load(folder, split='train')
  assert [found.read.caption(i) for i in range(2)] == ['picture 2', 'picture 3']
  with pytest.raises(errors.DataError, match=r"has no subfolder 'test'"):
    load(folder, split='test')


@pytest.mark.parametrize('form', [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize('key', [
  'a', 'img.001', 'deep/er/a', './a', '/abs/a', '../../out', 'v1.5/a', 'ünï', '名前',
  f'{"long" * 20}/{"name" * 20}',
])  # fmt: skip
def test_keys_are_only_names(tmp_path, key, form):
  other = key[:-1] + 'z'
  path = pack(tmp_path / 'a.tar', [*sample(key, 1), *sample(other, 2)], form)
  check(all_of(path), [1, 2])
  assert [f.name for f in tmp_path.iterdir()] == ['a.tar']


def test_the_parts_of_a_sample_need_not_lie_together(tmp_path):
  one, two = sample('one', 1), sample('two', 2)
  check(all_of(pack(tmp_path / 'a.tar', [one[0], two[0], two[1], one[1]])), [1, 2])


@pytest.mark.parametrize('ext, stored, expected', [
  ('txt', ' a cat \n', 'a cat'),
  ('TXT', '\n\na cat\r\n\non a mat', 'a cat on a mat'),
  ('txt', 'a cat\x0bon\x85a\u2028mat', 'a cat\x0bon\x85a\u2028mat'),
  ('caption', '\ufeffune été', 'une été'),
  ('json', json.dumps({'caption': 'a 🐈', 'text': 'no'}), 'a 🐈'),
  ('json', '\ufeff' + json.dumps({'caption': '\ufeff\none\ntwo'}), 'one two'),
  ('json', json.dumps({'caption': None, 'text': ['first', 'second']}), 'first'),
  ('json', json.dumps({'caption': [' \n', 'second\nline']}), 'second line'),
])  # fmt: skip
def test_captions_are_found_in_every_form(tmp_path, ext, stored, expected):
  check(all_of(pack(tmp_path / 'a.tar', sample('a', 1, stored, ext))), [1], [expected])


def test_captions_of_several_lines_are_told(tmp_path):
  members = [*sample('a', 1, 'one\ntwo'), *sample('b', 2, 'a\x0bcat'), *sample('c', 3)]
  found = load(pack(tmp_path / 'a.tar', members))
  assert found.read.notes == (
    f'data.path={tmp_path}/a.tar: 1 of 3 captions have several lines, and all lines of a text are '
    "read as one caption (the first is 'a')",
  )
  assert found.changed.endswith(
    "first line of a caption, and 2 captions are longer (the first is 'a')"
  )
  assert load(pack(tmp_path / 'b.tar', sample('a', 1))).changed == ''


def test_plain_text_counts_before_json(tmp_path):
  members = [*sample('a', 1, '{"caption": "of json"}', 'json'), ('a.txt', 'of text')]
  check(all_of(pack(tmp_path / 'a.tar', members)), [1], ['of text'])
  members = [*sample('a', 1, '{"caption": "of json"}', 'json'), ('a.txt', ' \n')]
  check(all_of(pack(tmp_path / 'b.tar', members)), [1], ['of json'])


def test_samples_that_lack_something_are_left_out_with_one_line(tmp_path):
  members = [
    *sample('good', 1),
    sample('no-caption', 2)[0],
    sample('no-picture', 2)[1],
    *sample('blank', 3, ' \n '),
    *sample('broken', 3, '{', 'json'),
    *sample('elsewhere', 3, '{"title": "x"}', 'json'),
    *sample('list', 3, '[1]', 'json'),
    ('latin.txt', b'\xe9t\xe9'), sample('latin', 4)[0],
    ('wide.txt', 'a cat'.encode('utf-16-le')), sample('wide', 4)[0],
    ('notes.cls', '3'), ('.hidden.txt', 'x'), ('README', 'x'),
  ]  # fmt: skip
  found = load(pack(tmp_path / 'a.tar', members))
  assert (len(found), found.read.caption(0)) == (1, 'picture 1')
  [note] = found.read.notes
  assert '7 samples without a readable caption and 1 without a picture (the first is' in note
  assert "'no-caption' in" in note and note.endswith('a.tar) are left out')
  assert load(pack(tmp_path / 'b.tar', sample('a', 1))).read.notes == ()


def test_a_set_without_any_sample_is_refused(tmp_path):
  with pytest.raises(
    errors.DataError, match=r'holds no picture .* with a caption .*1 sample without'
  ):
    load(pack(tmp_path / 'a.tar', sample('a', 1)[:1]))


def test_a_key_that_comes_twice_is_refused(tmp_path):
  with pytest.raises(errors.DataError, match=r'a.tar: x.png is there twice; pack the shard again'):
    load(pack(tmp_path / 'a.tar', [*sample('x', 1), *sample('x', 2)]))


def test_the_same_key_in_two_shards_is_two_samples(tmp_path):
  for name, n in (('a', 1), ('b', 2)):
    pack(tmp_path / f'{name}.tar', sample('x', n))
  check(all_of(tmp_path), [1, 2])


@pytest.mark.parametrize('pattern, why', [
  ('{00000..00004}.tar', r'00003.tar is missing, and 1 more; download the shard'),
  ('00009.tar', r'00009.tar is missing; download the shard, or set data.path to a pattern without'),
  ('no*.tar', r'matches no file; set data.path to the shards'),
  ('{.,two}/*.tar', r'/two/\*\.tar matches no file; set data.path to the shards'),
  ('{3..1}.tar', r'matches no file; set data.path to the shards'),
  ('{0..99999999999}.tar', r'matches more than 100,000 shards'),
])  # fmt: skip
def test_a_missing_shard_is_named(folder, pattern, why):
  with pytest.raises(errors.DataError, match=why):
    load(folder / pattern)


def test_a_folder_without_shards_is_refused(tmp_path):
  with pytest.raises(errors.DataError, match=r'holds no .tar files'):
    load(tmp_path)


def test_a_compressed_shard_is_refused(folder):
  shard = folder / '00001.tar'
  shard.write_bytes(gzip.compress(shard.read_bytes()))
  with pytest.raises(
    errors.DataError, match=r'00001.tar is compressed, .* decompress the file to a .tar'
  ):
    load(folder)


def header_of(data, name):
  return data.index(name.encode())


@pytest.mark.parametrize('damage', [
  lambda d: b'',
  lambda d: b'no tar at all' * 100,
  lambda d: d[: header_of(d, '0003.png') + 700],  # within a picture
  lambda d: d[: header_of(d, '0003.txt') + 512 + 3],  # within the last member
  lambda d: d[: header_of(d, '0003.png')],  # between two members
  lambda d: d[: header_of(d, '0003.png') + 3] + b'\xff' + d[header_of(d, '0003.png') + 4 :],
  lambda d: d[: header_of(d, '0003.png')] + bytes(512) + d[header_of(d, '0003.png') + 512 :],
  lambda d: d + b'more',
], ids=['empty', 'other', 'cut', 'end', 'between', 'header', 'zeros', 'behind'])  # fmt: skip
def test_a_damaged_shard_is_named(folder, damage):
  shard = folder / '00001.tar'
  shard.write_bytes(damage(shard.read_bytes()))
  with pytest.raises(errors.DataError, match=r'00001.tar is no whole tar: .*; copy the file again'):
    load(folder)


def test_a_damaged_picture_is_named_when_it_is_read(folder):
  shard = folder / '00001.tar'
  data = bytearray(shard.read_bytes())
  data[data.index(b'IDAT', header_of(data, '0003.png')) + 50] ^= 1
  shard.write_bytes(data)
  found = load(folder)
  with pytest.raises(errors.DataError, match=r'00001.tar: 0003.png is no readable picture'):
    found[3]


def test_a_shard_that_goes_away_is_named_when_it_is_read(folder):
  found = load(folder)
  (folder / '00000.tar').write_bytes(b'')
  with pytest.raises(errors.DataError, match=r'00000.tar became shorter since the run began'):
    found[0]
  (folder / '00001.tar').unlink()
  with pytest.raises(errors.DataError, match=r'00001.tar cannot be read: No such file'):
    found[2]


def test_the_fingerprint_names_pictures_captions_and_order_not_the_place(folder, tmp_path):
  again = [pack(tmp_path / 'all.tar', [m for n in range(6) for m in sample(f'{n:04d}', n)])]
  again.append(pack(tmp_path / 'turned.tar', [m for n in (1, 0) for m in sample(f'{n:04d}', n)]))
  again.append(pack(tmp_path / 'other.tar', sample('0000', 0, 'picture  0')))
  again.append(pack(tmp_path / 'one.tar', sample('0000', 0)))
  found = [load(path).fingerprint for path in (folder, *again)]
  assert found[0] == found[1] and len(set(found)) == 4


def test_reading_is_picklable_and_leaves_no_file_open(folder, open_files):
  with open_files():
    found = pickle.loads(pickle.dumps(load(folder).read))  # noqa: S301 - a worker's copy
    check([(found(i)[0], found.caption(i)) for i in range(6)], range(6))


def test_links_do_not_lead_out_of_a_shard(tmp_path):
  secret = tmp_path / 'secret.txt'
  secret.write_text('secret')
  path = tmp_path / 'a.tar'
  with tarfile.open(path, 'w') as t:
    data = labelled.encode(pixels(1))
    info = tarfile.TarInfo('a.png')
    info.size = len(data)
    t.addfile(info, io.BytesIO(data))
    info = tarfile.TarInfo('a.txt')
    info.type, info.linkname = tarfile.SYMTYPE, str(secret)
    t.addfile(info)
  with pytest.raises(errors.DataError, match=r'a\.txt is a link to a file that this shard does no'):
    load(path)


@pytest.mark.parity
def test_what_their_writer_packs_is_read_as_their_reader_reads_it(tmp_path):
  theirs = pytest.importorskip('webdataset', reason='pip install webdataset')
  words = ['a cat', 'ünï 🐈', 'x' * 200]
  for s in range(2):
    with theirs.TarWriter(str(tmp_path / f'{s:03d}.tar')) as writer:
      for n, caption in enumerate(words):
        more = {'txt': caption} if n % 2 else {'json': {'caption': caption, 'width': n}}
        picture = labelled.encode(pixels(3 * s + n))
        writer.write({'__key__': f'deep/{s}_{n}{"n" * 90}', 'png': picture, 'cls': n, **more})
  check(all_of(tmp_path / '{000..001}.tar'), range(6), words * 2)
  reader = theirs.WebDataset(str(tmp_path / '{000..001}.tar'), shardshuffle=False)
  for number, found in enumerate(reader.decode('rgb8')):
    np.testing.assert_array_equal(found['png'], load(tmp_path)[number][0])
    caption = found.get('txt') or found['json']['caption']
    assert caption == load(tmp_path).read.caption(number)
  assert number == 5


def linked(path, members, links):
  """Writes a tar of the members, and of links [(name, type, target)] after them."""
  pack(path, members)
  with tarfile.open(path, 'a') as t:
    for name, kind, target in links:
      info = tarfile.TarInfo(name)
      info.type, info.linkname = kind, target
      t.addfile(info)
  return path


def test_links_in_a_shard_are_followed(tmp_path):
  members = [*sample('a', 1), ('store/2', labelled.encode(pixels(2))), ('words/2', 'picture 2')]
  links = [
    ('x/b.png', tarfile.SYMTYPE, '../store/2'), ('x/b.txt', tarfile.LNKTYPE, 'words/2'),
    ('x/c.png', tarfile.SYMTYPE, './b.png'), ('x/c.txt', tarfile.SYMTYPE, '../a.txt'),
  ]  # fmt: skip
  found = all_of(linked(tmp_path / 'a.tar', members, links))
  check(found, [1, 2, 2], ['picture 1', 'picture 2', 'picture 1'])


@pytest.mark.parametrize('target', ['gone.png', '../../a.png', '/etc/passwd', 'b.png'])
def test_a_link_to_nothing_in_a_shard_is_refused(target, tmp_path):
  path = linked(tmp_path / 'a.tar', sample('a', 1), [('b.png', tarfile.SYMTYPE, target)])
  with pytest.raises(
    errors.DataError, match=r'b\.png is a link to a file that this shard does not'
  ):
    load(path)


def test_pictures_that_are_passed_over_are_told(tmp_path):
  members = [*sample('a', 1), ('b.heic', b'x'), ('b.txt', 'b'), ('a.jpg', b'x'), ('a.cls', '7')]
  pack(tmp_path / 'set' / '0.tar', members)
  for name in ('1.tar.gz', 'more/2.tar', 'stats.json', '.hidden.tgz'):
    labelled.write(tmp_path / 'set' / name, b'')
  shard = f'{tmp_path}/set/0.tar'
  assert load(tmp_path / 'set').read.notes == (
    f'data.path={tmp_path}/set: 0 samples without a readable caption and 1 without a picture (the '
    f"first is 'b' in {shard}) are left out",
    f'data.path={tmp_path}/set: passed over 1 picture of a format that is not read (such as '
    f'{shard}: b.heic), 2 archives compressed or in a subfolder (such as 1.tar.gz), 1 picture '
    f'beside another picture of the same sample (such as {shard}: a.png)',
  )


def test_other_captions_of_a_sample_are_told(tmp_path):
  members = [
    *sample('one', 1), ('one.json', '{"caption": "picture 1\\n"}'), ('one.caption', ' '),
    *sample('two', 2), ('two.json', '{"caption": "other"}'),
  ]  # fmt: skip
  found = load(pack(tmp_path / 'a.tar', members))
  assert [found.read.caption(i) for i in range(2)] == ['picture 1', 'picture 2']
  assert found.read.notes == (
    f'data.path={tmp_path}/a.tar: passed over 1 caption beside another caption of the same sample '
    f'(such as {tmp_path}/a.tar: two.json)',
  )


def test_tiny_pictures_are_left_out_and_told(tmp_path):
  tiny = [('b.png', labelled.encode(np.zeros((1, 1, 3), np.uint8))), ('b.txt', 'a dot')]
  found = load(pack(tmp_path / 'a.tar', [*sample('a', 0), *tiny, *sample('c', 1)]))
  assert [found.read.caption(i) for i in range(len(found))] == ['picture 0', 'picture 1']
  [note] = found.read.notes
  assert 'passed over 1 picture below a quarter of the side' in note and 'a.tar: b.png' in note
  assert '1 picture below a quarter of the side' in found.changed


def test_another_picture_of_the_same_length_is_other_data(tmp_path):
  [name, data], text = sample('a', 0)[0], sample('a', 0)[1]
  one = load(pack(tmp_path / 'a.tar', [(name, data), text]))
  two = load(pack(tmp_path / 'a.tar', [(name, data[:-5] + b'other'), text]))
  assert one.fingerprint != two.fingerprint
  by_length = source.fingerprint([f'a {len(data)} picture 0'])
  assert one.before().fingerprint == two.before().fingerprint == by_length


def test_shards_hold_pictures_that_stand_upright(tmp_path):
  exif, out = Image.Exif(), io.BytesIO()
  exif[0x0112] = 3
  Image.fromarray(pixels(0)).save(out, 'PNG', exif=exif)
  found = load(pack(tmp_path / 'a.tar', [('a.png', out.getvalue()), ('a.txt', 'a')]))
  np.testing.assert_array_equal(found[0][0], pixels(0)[::-1, ::-1])


@pytest.mark.parametrize('form', [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_a_damaged_picture_is_named_in_any_script_and_length(form, tmp_path):
  key = f'画像/{"x" * 120}é'
  pack(tmp_path / 'a.tar', [(f'{key}.png', b'no picture'), (f'{key}.txt', b'a cat')], form)
  data = load(tmp_path / 'a.tar')
  with pytest.raises(errors.DataError, match=rf'a\.tar: {key}\.png is no readable picture'):
    data[0]
