"""Tests of weight files: files that are damaged or of another network are refused."""

import numpy as np
import pytest

from gdistill import errors
from gdistill.evaluation.features import weights

PARAMS = {'conv': {'kernel': np.arange(6, dtype=np.float32).reshape(2, 3), 'bias': np.ones(3)}}


@pytest.fixture
def file(tmp_path):
  weights.write(tmp_path / 'w.safetensors', 'lite0', PARAMS, 'f00d')
  return tmp_path / 'w.safetensors'


def test_parameters_come_back_with_where_they_are_from(file):
  params, metadata = weights.read('lite0', file)
  np.testing.assert_array_equal(params['conv']['kernel'], PARAMS['conv']['kernel'])
  assert params['conv']['bias'].dtype == np.float64
  assert metadata['source_sha256'] == 'f00d' and len(metadata['sha256']) == 64


def test_weights_of_another_network_are_refused(file):
  with pytest.raises(errors.ConfigError, match=r"weights of 'lite0'.*not of 'inception'"):
    weights.read('inception', file)


def test_every_damage_is_seen(file):
  whole = file.read_bytes()
  for at in range(0, len(whole), 7):
    file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises((errors.CheckpointError, errors.ConfigError)):
      weights.read('lite0', file)
  for size in (0, 8, len(whole) - 1):
    file.write_bytes(whole[:size])
    with pytest.raises(errors.CheckpointError, match='gdistill convert'):
      weights.read('lite0', file)


def test_missing_weights_are_said_to_be_downloaded_and_converted(tmp_path, monkeypatch):
  monkeypatch.setenv('GDISTILL_WEIGHTS', str(tmp_path))
  with pytest.raises(errors.DataError) as told:
    weights.find('inception')
  words = str(told.value)
  assert f'{tmp_path}/inception.safetensors' in words
  assert 'pt_inception-2015-12-05-6726825d.pth' in words and 'gdistill convert inception' in words
  monkeypatch.delenv('GDISTILL_WEIGHTS')
  assert weights.default_path('lite0').parts[-3:] == ('gdistill', 'weights', 'lite0.safetensors')


def test_the_command_for_missing_weights_names_a_source_only_if_there_is_a_file_to_download(
  tmp_path,
):
  file = tmp_path / 'w.safetensors'
  for network, source in (
    ('inception', f' --source={weights.SOURCES["inception"].file}'),
    ('lite0', ''),
  ):
    with pytest.raises(errors.DataError) as e:
      weights.find(network, str(file))
    assert str(e.value).endswith(f'run: gdistill convert {network}{source} --out={file}')
