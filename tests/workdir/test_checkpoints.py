"""Tests of one checkpoint: restored bit for bit, written in order, and never silently damaged."""

import os
import random
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import trees
from jax import numpy as jnp

from gdistill import errors
from gdistill.workdir import checkpoints
from gdistill.workdir import step_checkpoints
from gdistill.workdir import storage


def test_a_state_comes_back_bitwise(tmp_path):
  checkpoints.save(tmp_path / 'c', trees.state(1), meta={'loss': 0.5})
  back = checkpoints.restore(tmp_path / 'c', jax.eval_shape(lambda: trees.state(1)))
  assert trees.same(back, trees.state(1)) and isinstance(back, trees.State)
  assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(back))
  assert checkpoints.manifest(tmp_path / 'c')['meta'] == {'loss': 0.5}


def test_without_a_target_leaves_are_numpy_under_plain_names(tmp_path):
  checkpoints.save(tmp_path / 'c', trees.state(1))
  back = checkpoints.restore(tmp_path / 'c')
  kernel = back['params']['down0']['conv1']['kernel']
  assert type(kernel) is np.ndarray and trees.same(
    kernel, trees.state(1).params['down0']['conv1']['kernel']
  )
  assert back['opt']['0']['mu']['out']['bias'].dtype == jnp.bfloat16
  names = checkpoints.manifest(tmp_path / 'c')['leaves']
  assert 'params/down0/conv1/kernel' in names and 'opt/0/count' in names


def test_every_kind_of_number_comes_back(tmp_path):
  tree = {
    'scalars': [5, 0.5, True, np.float64(0.1), np.int64(2**40)],
    'small': (np.arange(3, dtype=np.int8), np.array(False), np.uint8([[255]])),
    'half': jnp.ones((2, 2), jnp.float16),
    'complex': np.array([1j]),
    'empty': np.zeros((0, 3), np.float32),
    'strided': np.arange(12.0).reshape(3, 4).T[::2],
    'none': None,
  }
  checkpoints.save(tmp_path / 'c', tree)
  assert trees.same(checkpoints.restore(tmp_path / 'c', tree), tree)


def test_a_failed_save_says_so_and_leaves_nothing(tmp_path, monkeypatch):
  def full(*args, **kwargs):
    (tmp_path / '7' / 'arrays' / 'half').write_bytes(b'x')
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(ocp.PyTreeCheckpointHandler, 'save', full)
  text = r'/7 could not be saved: .*No space left on device; free disk space$'
  with pytest.raises(errors.CheckpointError, match=text):
    step_checkpoints.save_step(tmp_path, 7, trees.state(1))
  assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(('number', 'words'), [
  (28, 'No space left on device; free disk space'),
  (13, 'Permission denied; fix the permissions of the folder'),
])  # fmt: skip
def test_the_advice_about_a_failed_save_fits_its_cause_and_stands_once(
  tmp_path, monkeypatch, number, words
):
  def fail(*args):
    raise OSError(number, os.strerror(number))

  for module, function in ((checkpoints, '_write_arrays'), (storage, '_put')):
    with monkeypatch.context() as m:
      m.setattr(module, function, fail)
      with pytest.raises(errors.CheckpointError, match=f'could not be saved: .*{words}$') as e:
        checkpoints.save(tmp_path / 'c', trees.state(1))
    assert str(e.value).count(words.partition('; ')[2]) == 1


def test_a_folder_without_manifest_is_not_complete_and_makes_room(tmp_path):
  (tmp_path / 'c' / 'arrays').mkdir(parents=True)
  (tmp_path / 'c' / 'arrays' / 'half').write_bytes(b'x')
  assert not checkpoints.is_complete(tmp_path / 'c')
  assert checkpoints.manifest(tmp_path / 'none') is None
  with pytest.raises(errors.CheckpointError, match=r'no manifest.json'):
    checkpoints.restore(tmp_path / 'c')
  checkpoints.save(tmp_path / 'c', trees.state(1))
  assert trees.same(checkpoints.restore(tmp_path / 'c', trees.state(1)), trees.state(1))
  assert not (tmp_path / 'c' / 'arrays' / 'half').exists()


def test_the_manifest_is_the_last_file(tmp_path, monkeypatch):
  written = []
  write = storage.write_bytes

  def look(p, data):
    written.append((p.name, sorted(storage.files(p.parent))))
    write(p, data)

  monkeypatch.setattr(storage, 'write_bytes', look)
  checkpoints.save(tmp_path / 'c', trees.state(1))
  [(name, before)] = written
  assert name == 'manifest.json'
  assert sorted([*before, name]) == sorted(storage.files(tmp_path / 'c'))


def empty(data, other):
  return b''


def half(data, other):
  return data[: len(data) // 2]


def minus_a_byte(data, other):
  return data[:-1]


def delete(data, other):
  return None


def bit_flip(data, other):
  i = random.Random(len(data)).randrange(len(data) * 8)
  return data[: i // 8] + bytes([data[i // 8] ^ 1 << i % 8]) + data[i // 8 + 1 :]


def append(data, other):
  return data + b'x'


def swap(data, other):
  return other


def outcome(folder, target):
  try:
    return checkpoints.restore(folder, target)
  except errors.CheckpointError as e:
    assert str(folder) in str(e) and '\n' not in str(e)
    return None


@pytest.mark.parametrize('damage', [empty, half, minus_a_byte, delete, bit_flip, append, swap])
def test_a_damaged_file_is_never_silently_wrong(tmp_path, damage, logged):
  for step in (1, 2):
    step_checkpoints.save_step(tmp_path / 'good', step, trees.state(step))
  names = list(storage.files(tmp_path / 'good' / '2'))
  others = list(storage.files(tmp_path / 'good' / '1'))
  assert 'manifest.json' in names and len(names) > 4
  caught = 0
  for i, name in enumerate(names):
    # The number and the names of the data files that Orbax writes differ between saves.
    other = name if name in others else others[i % len(others)]
    folder = tmp_path / str(i)
    shutil.copytree(tmp_path / 'good', folder)
    data = damage((folder / '2' / name).read_bytes(), (folder / '1' / other).read_bytes())
    if data is None:
      (folder / '2' / name).unlink()
    else:
      (folder / '2' / name).write_bytes(data)
    alone = outcome(folder / '2', trees.state(0))
    assert alone is None or trees.same(alone, trees.state(2)), name
    step, tree, meta = step_checkpoints.restore_latest(folder, trees.state(0))
    assert meta == {'step': step} and trees.same(tree, trees.state(step)), name
    assert step == (1 if alone is None else 2), name
    caught += alone is None
  assert (
    caught == len(names) if damage is not swap else caught >= 2
  )  # some files are equal in both steps


def test_a_leaf_that_orbax_gets_wrong_is_named(tmp_path, monkeypatch):
  tree = {'a': np.ones(8), 'w': np.arange(1000.0)}
  checkpoints.save(tmp_path / 'c', tree)
  read = ocp.PyTreeCheckpointHandler.restore

  def off_by_a_bit(*args, **kwargs):
    arrays = read(*args, **kwargs)
    arrays['w'].view(np.uint8)[4000] ^= 1
    return arrays

  monkeypatch.setattr(ocp.PyTreeCheckpointHandler, 'restore', off_by_a_bit)
  with pytest.raises(errors.CheckpointError, match="leaf 'w' does not match its digest"):
    checkpoints.restore(tmp_path / 'c')


def test_orbax_is_shown_no_damaged_file(tmp_path, monkeypatch):
  checkpoints.save(tmp_path / 'c', trees.state(1))
  monkeypatch.setattr(ocp.PyTreeCheckpointHandler, 'restore', lambda *a, **k: pytest.fail('shown'))
  for name in storage.files(tmp_path / 'c' / 'arrays'):
    file = tmp_path / 'c' / 'arrays' / name
    good = file.read_bytes()
    file.write_bytes(bit_flip(good, None))
    with pytest.raises(errors.CheckpointError, match=f'arrays/{name} does not match its digest'):
      checkpoints.restore(tmp_path / 'c')
    file.write_bytes(good)


def test_what_orbax_raises_becomes_one_line(tmp_path, monkeypatch):
  checkpoints.save(tmp_path / 'c', trees.state(1))
  monkeypatch.setattr(ocp.PyTreeCheckpointHandler, 'restore', lambda *a, **k: 1 / 0)
  with pytest.raises(errors.CheckpointError, match='Orbax cannot read arrays: division by zero'):
    checkpoints.restore(tmp_path / 'c')


def test_the_file_that_is_missing_or_short_is_named(tmp_path):
  checkpoints.save(tmp_path / 'c', trees.state(1))
  file = tmp_path / 'c' / 'arrays' / 'manifest.ocdbt'
  file.write_bytes(file.read_bytes()[:-1])
  with pytest.raises(errors.CheckpointError, match=r'arrays/manifest.ocdbt has \d+ bytes, not'):
    checkpoints.restore(tmp_path / 'c')
  file.unlink()
  with pytest.raises(errors.CheckpointError, match=r'arrays/manifest.ocdbt is missing'):
    checkpoints.restore(tmp_path / 'c')


def test_folders_may_be_named_relative_to_where_one_stands(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  checkpoints.save('runs/one', {'a': np.arange(3.0)})
  np.testing.assert_array_equal(checkpoints.restore('runs/one')['a'], np.arange(3.0))
