"""Shards, their labels and their index say what they hold, and are repaired when damaged."""

import hashlib
import json
import shutil

import labelled
import numpy as np
import pytest

from gdistill import errors
from gdistill.data import records
from gdistill.data import source


def test_the_index_says_what_is_there_and_not_from_where(records_path, folder_path):
  index = records.read_index(str(records_path / 'train'))
  assert index['count'] == 20 and index['shape'] == [12, 12, 3]
  assert index['class_names'] == list(labelled.CLASSES)
  assert [s['count'] for s in index['shards']] == [6, 6, 6, 2]
  for shard in index['shards']:
    data = (records_path / 'train' / shard['name']).read_bytes()
    assert (len(data), hashlib.sha256(data).hexdigest()) == (shard['bytes'], shard['sha256'])
  labels = np.frombuffer((records_path / 'train' / 'labels.int32').read_bytes(), '<i4')
  assert np.bincount(labels).tolist() == list(labelled.COUNTS['train'])
  assert str(folder_path) not in json.dumps(index)


def test_corrupt_pictures_can_be_left_out(folder_path, tmp_path):
  pictures = shutil.copytree(folder_path, tmp_path / 'in')
  (pictures / 'train/ape/3.png').write_bytes(b'')
  with pytest.raises(
    errors.DataError, match=r'1 of 29 pictures.*3\.png is no readable.*it is empty'
  ):
    labelled.prepared(pictures, tmp_path / 'out')
  index = labelled.prepared(pictures, tmp_path / 'out', skip_corrupt=True)['train']
  assert index['count'] == 19 and index['made']['skipped'] == ['train/ape/3.png']
  train, _ = records.load(labelled.settings('records', tmp_path / 'out'), labelled.SHAPE)
  rest = [e for e in labelled.examples('train') if e[0] != 'train/ape/3.png']
  for i, (_, pixels, label) in enumerate(rest):
    np.testing.assert_array_equal(train[i][0], pixels)
    assert train[i][1] == label
  # Without the flag the same command fails again, though the shard is there.
  with pytest.raises(errors.DataError, match='1 of 29'):
    labelled.prepared(pictures, tmp_path / 'out')


@pytest.mark.parametrize('damage', [
  lambda f: f.unlink(),
  lambda f: f.write_bytes(f.read_bytes()[:-7]),
  lambda f: f.write_bytes(bytes([f.read_bytes()[0] ^ 1]) + f.read_bytes()[1:]),
], ids=['gone', 'cut', 'a bit'])  # fmt: skip
@pytest.mark.parametrize('name', ['00001.array_record', '00001.json', 'labels.int32', 'index.json'])
def test_repeating_the_command_mends_what_was_damaged(
  folder_path, records_path, tmp_path, damage, name
):
  out = shutil.copytree(records_path, tmp_path / 'out')
  damage(out / 'train' / name)
  labelled.prepared(folder_path, out)
  assert labelled.contents(out) == labelled.contents(records_path)


def test_a_label_changed_in_passing_is_mended(folder_path, records_path, tmp_path):
  out = shutil.copytree(records_path, tmp_path / 'out')
  said = json.loads((out / 'train' / '00000.json').read_text())
  said['labels'][0] = 2
  (out / 'train' / '00000.json').write_text(json.dumps(said))
  labelled.prepared(folder_path, out)
  assert labelled.contents(out) == labelled.contents(records_path)


def test_what_the_source_has_no_more_is_made_no_more(folder_path, tmp_path):
  pictures = shutil.copytree(folder_path, tmp_path / 'in')
  labelled.prepared(pictures, tmp_path / 'out')
  for i in range(5):
    (pictures / 'train' / 'cat' / f'{i}.png').unlink()
  index = labelled.prepared(pictures, tmp_path / 'out')['train']
  assert [s['count'] for s in index['shards']] == [6, 6, 3]
  found = sorted(f.name for f in (tmp_path / 'out' / 'train').glob('*.array_record'))
  assert found == [s['name'] for s in index['shards']]


def test_a_class_that_skip_corrupt_empties_is_refused_by_name(folder_path, tmp_path):
  pictures = shutil.copytree(folder_path, tmp_path / 'in')
  for file in (pictures / 'train/bee').iterdir():
    file.write_bytes(b'')
  with pytest.raises(
    errors.DataError,
    match=r"the class 'bee' would have no pictures .*--skip_corrupt leaves .* such as train/bee/0",
  ):
    labelled.prepared(pictures, tmp_path / 'out', skip_corrupt=True)
  assert not (tmp_path / 'out/train/index.json').exists()


def test_records_of_earlier_versions_with_an_empty_class_are_refused(records_path, tmp_path):
  out = shutil.copytree(records_path, tmp_path / 'out')
  index = json.loads((out / 'train/index.json').read_text())
  index['class_names'].append('dog')
  index['digest'] = records.digest(index)
  (out / 'train/index.json').write_text(json.dumps(index))
  train, _ = records.load(labelled.settings('records', out, held_out=0.0, held_out_split='train'),
                          labelled.SHAPE)  # fmt: skip
  with pytest.raises(errors.DataError, match=r"HERE has no training examples of 1 class.* 'dog'"):
    source.check_classes(train, 'HERE')
  with pytest.raises(errors.DataError, match="the class 'dog' has no examples"):
    source.held_out(train, 0.2)
