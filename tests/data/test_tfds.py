"""TensorFlow Datasets without TensorFlow: splits, decoding, and what is refused."""

import io
import os
import shutil
import subprocess
import sys

import labelled
import numpy as np
import pytest
import tensorflow_datasets
from PIL import Image

from gdistill import errors
from gdistill.data import earlier
from gdistill.data import tfds


def load(path, **more):
  more = {'dataset': 'cifar10', **more}
  return tfds.load(labelled.settings('tfds', path, **more), labelled.SHAPE)


def test_mocked_cifar10_is_read_without_tensorflow():
  code = """
import sys, tensorflow_datasets, labelled
from gdistill.data import earlier
from gdistill.data import tfds
with tensorflow_datasets.testing.mock_data(num_examples=9):
  train, test = tfds.load(
    labelled.settings('tfds', dataset='cifar10', held_out_split='test'), (32, 32, 3))
  assert len(train) == 9 and len(train.class_names) == 10, train
  pixels, label = train[5]
  assert pixels.shape == (32, 32, 3) and 0 <= label < 10
assert 'tensorflow' not in sys.modules
"""
  path = os.pathsep.join([os.path.dirname(labelled.__file__), *sys.path])
  subprocess.run([sys.executable, '-c', code], check=True, env={**os.environ, 'PYTHONPATH': path})


def test_mocked_pictures_are_resized_and_turned_grey():
  with tensorflow_datasets.testing.mock_data(num_examples=3):
    wanted = labelled.settings('tfds', dataset='cifar10')
    assert tfds.load(wanted, (8, 8, 1))[0][2][0].shape == (8, 8, 1)


def test_a_part_of_a_split_is_a_split(tfds_path):
  train, held = load(tfds_path, split='train[:75%]', held_out_split='train[75%:]')
  assert (len(train), len(held)) == (15, 5)
  expected = labelled.examples('train')[15][1]
  np.testing.assert_array_equal(held[0][0], expected)


@pytest.mark.parametrize('more, why', [
  ({'dataset': 'no_such_set'}, 'data.dataset=no_such_set is no data set that .* knows or finds in'),
  ({'dataset': 'Bad Name!'}, 'cannot be read: Parsing'),
  ({'split': 'tes'}, "split 'tes', cannot be read: Unknown split 'tes'.*'train'"),
])  # fmt: skip
def test_an_unknown_set_or_split_is_refused(tfds_path, more, why):
  with pytest.raises(errors.DataError, match=why):
    load(tfds_path, **more)


def test_a_set_that_is_not_prepared_is_refused_with_the_command(tmp_path, monkeypatch):
  builder = tensorflow_datasets.core.DatasetBuilder
  monkeypatch.setattr(builder, 'download_and_prepare', lambda *a, **k: pytest.fail('downloads'))
  with pytest.raises(errors.DataError, match=f'tfds build cifar10 .*array_record .*{tmp_path}'):
    load(tmp_path)
  assert not list(tmp_path.iterdir())


def test_a_set_without_labels_is_refused():
  refused = pytest.raises(errors.DataError, match="training needs 'image' and a class as 'label'")
  with tensorflow_datasets.testing.mock_data(num_examples=3), refused:
    load('', dataset='div2k')


def test_pictures_are_decoded_as_those_of_a_folder(tmp_path):
  red = labelled.encode(np.full((20, 30, 4), (0, 255, 255, 0), np.uint8), 'JPEG', mode='CMYK')
  cut = labelled.encode(labelled.pixels_of('train', 0, 0))[:90]
  labelled.write_tfds(tmp_path, {s: [(red, 0), (cut, 1)] for s in labelled.COUNTS})
  train, _ = load(tmp_path)
  assert np.abs(train[0][0].astype(int) - (255, 0, 0)).max() <= 5
  with pytest.raises(errors.DataError, match=r'^example 1 of cifar10/.* train is no readable'):
    train[1]


def test_a_damaged_file_names_the_example(tfds_path, tmp_path):
  copy = shutil.copytree(tfds_path, tmp_path / 'copy')
  [file] = copy.rglob('*train*00000-of*')
  data = bytearray(file.read_bytes())
  place = data.rindex(b'IDAT')  # in the last record
  data[place + 100] ^= 1
  file.write_bytes(data)
  train, _ = load(copy)
  train[0]
  with pytest.raises(errors.DataError, match=r'example \d+ of cifar10/.* train .*(prepare|fix)'):
    for i in range(len(train)):
      train[i]


def test_turned_and_tiny_pictures(tmp_path):
  exif, out = Image.Exif(), io.BytesIO()
  exif[0x0112] = 3
  pixels = labelled.pixels_of('train', 0, 0)
  Image.fromarray(pixels).save(out, 'PNG', exif=exif)
  tiny = labelled.encode(np.zeros((2, 2, 3), np.uint8))
  plain = labelled.encode(pixels)
  labelled.write_tfds(tmp_path, {
    'train': [(out.getvalue(), 0), (tiny, 1), (plain, 1), (plain, 2)],
    'validation': [(plain, 0)],
  })  # fmt: skip
  train, held = load(tmp_path)
  np.testing.assert_array_equal(train[0][0], pixels[::-1, ::-1])
  with pytest.raises(errors.DataError, match=r'^example 1 of .* is 2 x 2 pixels.*gdistill prepare'):
    train[1]
  kept = [index.tolist() for index, _ in train.batches(3)]
  assert kept == [[0, 2], [3]] and train.some(9)[1].tolist() == [0, 1, 2]
  # Earlier versions had the same fingerprint and read both otherwise.
  kept = earlier.as_recorded((train, held), train.before().fingerprint)
  assert kept[0].fingerprint == train.fingerprint
  assert '1 picture turned upright' in kept[0].changed and 'quarter' in kept[0].changed
  again = earlier.as_recorded((held,), held.before().fingerprint)
  assert again[0].fingerprint == held.before().fingerprint
  flags = {'data_dir': str(tmp_path), 'held_out_split': ''}
  index = labelled.prepared('tfds:cifar10', tmp_path / 'out', **flags)['train']
  assert index['count'] == 3 and len(index['made']['small']) == 1 and not index['made']['skipped']
