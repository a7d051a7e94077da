"""Records and indices: every damaged bit, missing file and wrong field is found."""

import json
import re
import shutil
import zlib

import labelled
import numpy as np
import pytest

from gdistill import errors
from gdistill.data import records


@pytest.fixture
def copy(records_path, tmp_path):
  return shutil.copytree(records_path, tmp_path / 'copy')


def load(path, shape=labelled.SHAPE, **more):
  return records.load(labelled.settings('records', path, **more), shape)


def change(path, right_digest=True, **fields):
  """Changes fields of an index file, and by default its digest to match."""
  index = json.loads(path.read_text())
  for key, value in fields.items():
    index[key] = value(index[key]) if callable(value) else value
  if right_digest:
    index['digest'] = records.digest(index)
  path.write_text(json.dumps(index))


def test_a_record_is_what_it_says():
  # By hand: crc32 of the rest, then shard 7, place 300, label 999, 2 x 1 x 3, six pixels.
  body = bytes([7, 0, 0, 0, 44, 1, 0, 0, 231, 3, 0, 0, 2, 0, 1, 0, 3, 0, 1, 2, 3, 4, 5, 6])
  pixels = np.arange(1, 7, dtype=np.uint8).reshape(2, 1, 3)
  data = records.record(pixels, 999, 7, 300)
  assert data == zlib.crc32(body).to_bytes(4, 'little') + body
  found, label = records.parse(data, 7, 300, (2, 1, 3))
  np.testing.assert_array_equal(found, pixels)
  assert label == 999


def test_every_flipped_bit_of_a_record_is_found():
  pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
  data = records.record(pixels, 1, 2, 3)
  for bit in range(8 * len(data)):
    bad = bytearray(data)
    bad[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ValueError, match='checksum'):
      records.parse(bytes(bad), 2, 3, (2, 2, 3))


def test_a_record_of_another_place_shard_or_size_is_found():
  data = records.record(np.zeros((2, 2, 3), np.uint8), 1, 2, 3)
  for shard, place, shape, why in (
    (2, 4, (2, 2, 3), 'record 3 of shard 2'),
    (1, 3, (2, 2, 3), 'record 3 of shard 2'),
    (2, 3, (4, 1, 3), '2 x 2'),
    (2, 3, (2, 2, 1), 'bytes'),
  ):
    with pytest.raises(ValueError, match=why):
      records.parse(data, shard, place, shape)


def test_a_damaged_record_names_itself_and_its_file(copy):
  file = copy / 'train' / '00001.array_record'
  data = bytearray(file.read_bytes())
  pixels = labelled.examples('train')[6 + 2][1].tobytes()  # six pictures a shard
  place = data.index(pixels)
  data[place + 100] ^= 4
  file.write_bytes(data)
  train, _ = load(copy)
  with pytest.raises(errors.DataError, match=r'record 2 of .*train/00001\.array_record cannot be'):
    train[8]
  assert train[7][1] == labelled.examples('train')[7][2]


def test_a_shard_in_the_place_of_another_is_found(copy):
  one, two = (copy / 'train' / f'0000{k}.array_record' for k in (0, 1))
  one.write_bytes(two.read_bytes())  # both files have the same size
  with pytest.raises(errors.DataError, match='it is record 0 of shard 1'):
    load(copy)[0][0]


@pytest.mark.parametrize('damage, why', [
  (lambda f: f.unlink(), r'00000\.array_record cannot be read: No such file.*copy'),
  (lambda f: f.write_bytes(b''), r'00000\.array_record has 0 bytes, not 131,072'),
  (lambda f: f.write_bytes(f.read_bytes()[:-1]), 'has 131,071 bytes'),
])  # fmt: skip
def test_a_missing_or_cut_shard_is_found_at_once(copy, damage, why):
  damage(copy / 'train' / '00000.array_record')
  with pytest.raises(errors.DataError, match=why):
    load(copy)


def test_a_shard_that_is_no_array_record_is_found(copy):
  file = copy / 'train' / '00000.array_record'
  file.write_bytes(bytes(len(file.read_bytes())))
  with pytest.raises(errors.DataError, match=r'record 0 of .* cannot be read'):
    load(copy)[0][0]


def test_a_missing_index_says_that_prepare_is_not_done(copy):
  (copy / 'train' / 'index.json').unlink()
  with pytest.raises(errors.DataError, match='written last: run `gdistill prepare`'):
    load(copy)
  with pytest.raises(errors.DataError, match=re.escape('check data.split')):
    load(copy, split='nothing')


@pytest.mark.parametrize('fields, why', [
  ({'version': 2}, 'format version 2, this gdistill reads 1; repeat `gdistill prepare`'),
  ({'format': 'tar'}, "is damaged: .*format is 'tar'"),
  ({'count': 19}, 'count 19 is not the number of records in'),
  ({'count': lambda n: n, 'shards': lambda s: s[:1]}, 'not the number of records in the shards'),
  ({'shards': lambda s: [{**s[0], 'name': '../x'}, *s[1:]]}, 'damaged: .*shard'),
  ({'shape': [12, 12]}, 'damaged: .*its shape is'),
  ({'shape': [12, -12, 3]}, 'damaged: .*its shape is'),
  ({'shape': None}, 'damaged'),
  ({'class_names': []}, 'damaged: .*its class_names are not a list of names'),
  ({'class_names': [1, 2, 3]}, 'damaged: .*its class_names are not a list of names'),
])  # fmt: skip
def test_an_index_that_says_something_else_is_refused(copy, fields, why):
  change(copy / 'train' / 'index.json', **fields)
  with pytest.raises(errors.DataError, match=why):
    load(copy)


def test_an_index_that_was_edited_is_refused(copy):
  names = lambda n: [*n[:-1], 'dog']
  change(copy / 'train' / 'index.json', right_digest=False, class_names=names)
  with pytest.raises(errors.DataError, match='damaged: ValueError: its digest is wrong'):
    load(copy)


@pytest.mark.parametrize(
  'text', ['', '[]', '{}', 'null', '{"format": "gdistill-records"}', '[' * 9999]
)
def test_an_index_that_is_something_else_is_refused(copy, text):
  (copy / 'train' / 'index.json').write_text(text)
  with pytest.raises(errors.DataError, match='is damaged'):
    load(copy)


def test_another_size_says_what_to_set(copy):
  with pytest.raises(
    errors.DataError,
    match=r'holds .* \[12, 12, 3\], .* takes \[8, 8, 1\]; set model.image_size=12 and '
    r'model.image_channels=3, or run .*--size=8 --channels=1',
  ):
    load(copy, shape=(8, 8, 1))


def test_damaged_labels_are_found_where_they_are_needed(copy):
  load(copy, held_out=0.2)
  (copy / 'train' / 'labels.int32').write_bytes(bytes(4 * 20))
  with pytest.raises(errors.DataError, match=r'labels\.int32 is damaged'):
    load(copy, held_out=0.2)


def test_few_files_stay_open(records_path, monkeypatch, open_files):
  monkeypatch.setattr(records, '_MOST_OPEN', 2)
  train, _ = load(records_path)
  for i in (0, 7, 13, 19, 1, 8, 14, 18):
    np.testing.assert_array_equal(train[i][0], labelled.examples('train')[i][1])
    assert len(train.read.shards._readers) <= 2
  many = {(1, k): k for k in range(400)}  # fewer than _MOST_OPEN
  monkeypatch.setattr(records, '_MOST_OPEN', 512)
  train.read.shards._readers.clear()
  train.read.shards._readers.update(many)
  train[0]
  assert len(train.read.shards._readers) == 401


def test_a_folder_whose_name_is_no_utf_8_is_refused_before_its_records_are_read(copy):
  other = copy.with_name('caf\udce9')
  copy.rename(other)
  with pytest.raises(
    errors.DataError, match=r"caf.udce9.*' has bytes that are no UTF-8.*rename"
  ) as e:
    load(other)
  assert str(e.value).isascii()
