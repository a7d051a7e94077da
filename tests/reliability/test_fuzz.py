"""Tests of damaged files: each is refused with one of gdistill's errors, or read unchanged."""

import json

import damage
import micro
import numpy as np
import pytest
import safetensors.numpy

from gdistill.cli import config_file
from gdistill.convert import files
from gdistill.evaluation import reference
from gdistill.evaluation import samples
from gdistill.evaluation.features import extractors
from gdistill.evaluation.figures import measure
from gdistill.evaluation.grid import cell_store
from gdistill.evaluation.report import sprites
from gdistill.published import source_files
from gdistill.recipe import reading
from gdistill.training import checks as run_checks
from gdistill.workdir import finished as finished_rounds
from gdistill.workdir import ledger
from gdistill.workdir import storage

SIZE = 6
EXTRACTOR = extractors.Extractor(
  'none', 'FD', lambda params, pixels: {}, {}, '0', {'resize': 'none'}, 'features', SIZE
)


def arrays(seed=0):
  draw = np.random.default_rng(seed)
  return {f'down{i}/kernel': draw.normal(size=(3, 3, 4)).astype(np.float32) for i in range(5)}


def written(path, data):
  path.write_bytes(data)
  return path


@pytest.mark.parametrize('cases', damage.CASES)
def test_damaged_weights(tmp_path, cases):
  def read(bad):
    found = files.weights(written(tmp_path / 'model.safetensors', bad))
    # A safetensors file has no checksum, so numbers may change. The code that builds a network from
    # the arrays checks the arrays.
    assert all(isinstance(a, np.ndarray) for a in found.values())

  assert damage.fuzz(safetensors.numpy.save(arrays()), cases, read) > cases // 3


@pytest.mark.parametrize('cases', damage.CASES)
def test_damaged_indexes_of_weights(tmp_path, cases):
  safetensors.numpy.save_file(arrays(), tmp_path / 'a.safetensors')
  index = {'metadata': {}, 'weight_map': dict.fromkeys(arrays(), 'a.safetensors')}

  def read(bad):
    found = files.weights(written(tmp_path / 'model.safetensors.index.json', bad))
    assert set(found) <= set(arrays())

  assert damage.fuzz(json.dumps(index).encode(), cases, read) > cases // 2


@pytest.mark.parametrize('cases', damage.CASES)
@pytest.mark.parametrize('name', ['card.json', 'params/manifest.json'])
def test_damaged_cards_and_manifests(tmp_path, name, cases):
  folder = tmp_path / 'round'
  finished_rounds.finish(folder, arrays(), {'stage': 'teacher', 'num_steps': 0, 'w_max': 4.0})
  data, whole = (folder / name).read_bytes(), finished_rounds.read_card(folder)

  def read(bad):
    written(folder / name, bad)
    found = finished_rounds.read_params(folder)
    assert finished_rounds.read_card(folder) == whole and len(found) == len(arrays())

  changed = sum(damage.damaged(data, case) != data for case in range(cases))
  assert damage.fuzz(data, cases, read) == changed


@pytest.mark.parametrize('cases', damage.CASES)
def test_damaged_configs(tmp_path, cases):
  data = json.dumps(reading.to_dict(micro.recipe()), indent=1).encode()
  (tmp_path / 'run').mkdir()

  def read(bad):
    config = config_file.load(str(written(tmp_path / 'config.json', bad)), [])
    assert reading.to_dict(reading.from_config(config))

  assert damage.fuzz(data, cases, read) > cases // 2

  def of_a_run(bad):
    written(tmp_path / 'run' / 'config.json', bad)
    run_checks.same_run(reading.to_dict(micro.recipe()), storage.path(tmp_path / 'run'))

  assert damage.fuzz(data, cases, of_a_run) > cases // 2


@pytest.mark.parametrize('cases', damage.CASES)
def test_damaged_settings_of_published_networks(tmp_path, cases):
  data = json.dumps({'_class_name': 'UNet2DConditionModel', 'in_channels': 4}).encode()

  def read(bad):
    assert isinstance(source_files.read_json(written(tmp_path / 'config.json', bad)), dict)

  assert damage.fuzz(data, cases, read) > cases // 3


@pytest.mark.parametrize('cases', damage.CASES)
def test_damaged_statistics(tmp_path, cases):
  features = np.random.default_rng(0).normal(size=(50, SIZE)).astype(np.float32)
  running = measure.Running(EXTRACTOR, 50, 20)
  running.add({'features': features}, np.arange(50), None)
  about = reference.describe(EXTRACTOR, 'a', 'train', 50, '0', 20, (8, 8, 3))
  data = reference.Reference(running.measured(), about).to_bytes()

  def read(bad):
    found = reference.read(written(tmp_path / 'reference.npz', bad), EXTRACTOR)
    assert found.measured.features.mean.shape == (SIZE,)

  assert damage.fuzz(data, cases, read) > cases // 2


@pytest.mark.parametrize('cases', damage.CASES)
def test_damaged_statistics_of_others(tmp_path, cases):
  file = tmp_path / 'mu.npz'
  np.savez(file, mu=np.ones(SIZE), sigma=np.eye(SIZE))

  def read(bad):
    found = samples._reference(str(written(file, bad)), EXTRACTOR, (8, 8, 3), 0)
    assert found.measured.features.mean.shape == (SIZE,)

  assert damage.fuzz(file.read_bytes(), cases, read) > cases // 3


@pytest.mark.parametrize('cases', damage.CASES)
def test_damaged_cells(tmp_path, cases):
  pixels = np.random.default_rng(0).integers(256, size=(20, 8, 8, 3), dtype=np.uint8)
  folder = tmp_path / 'evaluation' / 'cells'
  folder.mkdir(parents=True)
  for pack in (True, False):
    data = cell_store.npz({'pixels': pixels, 'index': np.arange(20)}, pack)

    def read(bad):
      found = cell_store.read(storage.path(written(folder / 'a.npz', bad)))
      if 'pixels' in found:  # zip has a checksum of the contents, but none of the names
        np.testing.assert_array_equal(found['pixels'], pixels)

    def draw(bad):
      written(folder / 'a.npz', bad)
      sprites.pixels(storage.path(tmp_path), 'a')  # the page leaves damaged pictures out

    assert damage.fuzz(data, cases, read) > cases // 3
    assert damage.fuzz(data, cases, draw) == 0


@pytest.mark.parametrize('cases', damage.CASES)
def test_damaged_entries_and_locks(tmp_path, cases):
  entry = ledger.record(tmp_path, 'tick', index=1)
  file = next((tmp_path / 'ledger').iterdir())
  data = file.read_bytes()

  def read(bad):
    written(file, bad)
    assert all(isinstance(e, dict) for e in ledger.ledger(tmp_path))

  assert damage.fuzz(data, cases, read) == 0 and entry['index'] == 1

  lock = json.dumps({'host': 'h', 'pid': 1, 'token': 't', 'heartbeat': 1.0}).encode()

  def take(bad):
    written(tmp_path / 'lock.json', bad)
    with ledger.Lock(tmp_path):
      pass
    (tmp_path / 'lock.json').unlink(missing_ok=True)

  damage.fuzz(lock, min(cases, 60), take)
