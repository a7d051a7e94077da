import os
import pathlib
import random
import shutil
import subprocess
import sys
import threading
import typing

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import stores
from absl import logging
from etils.epath import backend
from fsspec.implementations import memory

from gdistill import errors
from gdistill.workdir import checkpoints
from gdistill.workdir import finished as finished_rounds
from gdistill.workdir import ledger
from gdistill.workdir import step_checkpoints
from gdistill.workdir import storage

ROOT = pathlib.Path(__file__).parents[2]


class State(typing.NamedTuple):
  step: jax.Array
  params: dict
  opt: optax.OptState
  nothing: None = None


def state(seed: int) -> State:
  rng = np.random.default_rng(seed)
  params = {
    'down0': {'conv1': {'kernel': jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)}},
    'out': {'bias': jnp.asarray(rng.normal(size=5), jnp.bfloat16)},
  }
  opt = optax.adam(1e-3).init(params)
  return State(jnp.int32(seed), params, jax.tree.map(lambda x: x + jnp.ones_like(x), opt))


def same(a, b) -> bool:
  """Bitwise, and of the same types; assert_trees_all_equal would take 1 for 1.0."""
  return jax.tree.structure(a) == jax.tree.structure(b) and all(
    np.asarray(x).dtype == np.asarray(y).dtype
    and np.asarray(x).shape == np.asarray(y).shape
    and np.asarray(x).tobytes() == np.asarray(y).tobytes()
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )


@pytest.fixture
def logged(monkeypatch):
  lines = []
  monkeypatch.setattr(logging, 'error', lambda text, *args: lines.append(text % args))
  return lines


# ---- one folder


def test_a_state_comes_back_bitwise(tmp_path):
  checkpoints.save(tmp_path / 'c', state(1), meta={'loss': 0.5})
  back = checkpoints.restore(tmp_path / 'c', jax.eval_shape(lambda: state(1)))
  assert same(back, state(1)) and isinstance(back, State)
  assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(back))
  assert checkpoints.manifest(tmp_path / 'c')['meta'] == {'loss': 0.5}


def test_without_a_target_leaves_are_numpy_under_plain_names(tmp_path):
  checkpoints.save(tmp_path / 'c', state(1))
  back = checkpoints.restore(tmp_path / 'c')
  kernel = back['params']['down0']['conv1']['kernel']
  assert type(kernel) is np.ndarray and same(kernel, state(1).params['down0']['conv1']['kernel'])
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
  assert same(checkpoints.restore(tmp_path / 'c', tree), tree)


def test_leaves_go_where_the_shardings_say(tmp_path):
  mesh = jax.make_mesh((1,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
  tree = {'a': jnp.ones((4, 2)), 'b': {'c': jnp.zeros(3)}}
  checkpoints.save(tmp_path / 'c', tree)
  for shardings in (sharding, {'a': sharding, 'b': {'c': sharding}}):
    for target in (tree, None):
      back = checkpoints.restore(tmp_path / 'c', target, shardings)
      assert same(back, tree)
      assert all(x.sharding == sharding for x in jax.tree.leaves(back))


def test_nothing_is_cast_on_the_way_to_a_device(tmp_path):
  sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  checkpoints.save(tmp_path / 'c', {'n': np.int64(2**40)})
  with pytest.raises(errors.CheckpointError, match="leaf 'n' would be cast from int64 to int32"):
    checkpoints.restore(tmp_path / 'c', shardings=sharding)


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_numbers_that_are_not_finite_are_refused(tmp_path, bad, dtype):
  tree = {'a': jnp.ones(3), 'b': {'c': jnp.ones(3, dtype).at[1].set(bad)}, 'd': np.nan}
  with pytest.raises(errors.NumericsError, match="leaf 'b/c' is not finite"):
    checkpoints.save(tmp_path / 'c', tree)
  assert not (tmp_path / 'c').exists()


@pytest.mark.parametrize(
  'tree, text',
  [
    ({'a': 'text'}, "leaf 'a' is <U4; put it in meta"),
    ({'a': object()}, "leaf 'a' is object"),
    ({'a': jax.random.key(0)}, "leaf 'a'"),
    ({'a/b': 1, 'a': {'b': 2}}, "two leaves are named 'a/b'"),
    ({'a/b': 1, 'a': 2}, "'a' is a leaf and a branch"),
  ],
)
def test_what_could_not_come_back_is_refused(tmp_path, tree, text):
  with pytest.raises(errors.CheckpointError, match=text):
    checkpoints.save(tmp_path / 'c', tree)
  assert not (tmp_path / 'c').exists()


KERNEL = {'params': {'a': jnp.ones((3, 4)), 'b': jnp.zeros(2)}}


@pytest.mark.parametrize(
  'target, text',
  [
    ({'params': {'a': jnp.ones((3, 5)), 'b': jnp.zeros(2)}}, r"'params/a'.*\[3, 4\].*\[3, 5\]"),
    (
      {'params': {'a': jnp.ones((3, 5), jnp.bfloat16), 'b': jnp.zeros(2)}},
      "'params/a' has dtype float32 and bfloat16 is wanted",
    ),
    ({'params': {'a': jnp.ones((3, 4))}}, "has a leaf 'params/b'"),
    ({'params': {**KERNEL['params'], 'c': jnp.ones(1)}}, "has no leaf 'params/c'"),
    ({'ema': KERNEL['params']}, "has no leaf 'ema/a'"),
  ],
)
def test_another_target_is_an_error_naming_the_first_leaf(tmp_path, target, text):
  step_checkpoints.save_step(tmp_path, 3, KERNEL)
  for restore in (checkpoints.restore, lambda _, t: step_checkpoints.restore_latest(tmp_path, t)):
    with pytest.raises(errors.CheckpointError, match=f'{tmp_path}/3.*{text}.*; use the model'):
      restore(tmp_path / '3', target)
  assert os.listdir(tmp_path) == ['3']  # a wish that is not met is no damage


def test_a_failed_save_says_so_and_leaves_nothing(tmp_path, monkeypatch):
  def full(*args, **kwargs):
    (tmp_path / '7' / 'arrays' / 'half').write_bytes(b'x')
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(ocp.PyTreeCheckpointHandler, 'save', full)
  with pytest.raises(errors.CheckpointError, match=r'/7 could not be saved: .*No space left'):
    step_checkpoints.save_step(tmp_path, 7, state(1))
  assert os.listdir(tmp_path) == []


def test_a_folder_without_manifest_is_not_complete_and_makes_room(tmp_path):
  (tmp_path / 'c' / 'arrays').mkdir(parents=True)
  (tmp_path / 'c' / 'arrays' / 'half').write_bytes(b'x')
  assert not checkpoints.is_complete(tmp_path / 'c')
  assert checkpoints.manifest(tmp_path / 'none') is None
  with pytest.raises(errors.CheckpointError, match=r'no manifest.json'):
    checkpoints.restore(tmp_path / 'c')
  checkpoints.save(tmp_path / 'c', state(1))
  assert same(checkpoints.restore(tmp_path / 'c', state(1)), state(1))
  assert not (tmp_path / 'c' / 'arrays' / 'half').exists()


def test_the_manifest_is_the_last_file(tmp_path, monkeypatch):
  written = []
  write = storage.write_bytes

  def look(p, data):
    written.append((p.name, sorted(storage.files(p.parent))))
    write(p, data)

  monkeypatch.setattr(storage, 'write_bytes', look)
  checkpoints.save(tmp_path / 'c', state(1))
  [(name, before)] = written
  assert name == 'manifest.json'
  assert sorted([*before, name]) == sorted(storage.files(tmp_path / 'c'))


# ---- damage


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
    step_checkpoints.save_step(tmp_path / 'good', step, state(step))
  names = list(storage.files(tmp_path / 'good' / '2'))
  others = list(storage.files(tmp_path / 'good' / '1'))
  assert 'manifest.json' in names and len(names) > 4
  caught = 0
  for i, name in enumerate(names):
    # how many data files Orbax writes, and their names, differ from save to save
    other = name if name in others else others[i % len(others)]
    folder = tmp_path / str(i)
    shutil.copytree(tmp_path / 'good', folder)
    data = damage((folder / '2' / name).read_bytes(), (folder / '1' / other).read_bytes())
    if data is None:
      (folder / '2' / name).unlink()
    else:
      (folder / '2' / name).write_bytes(data)
    alone = outcome(folder / '2', state(0))
    assert alone is None or same(alone, state(2)), name
    step, tree, meta = step_checkpoints.restore_latest(folder, state(0))
    assert meta == {'step': step} and same(tree, state(step)), name
    assert step == (1 if alone is None else 2), name
    caught += alone is None
  assert caught == len(names) if damage is not swap else caught >= 2  # some are equal


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
  checkpoints.save(tmp_path / 'c', state(1))
  monkeypatch.setattr(ocp.PyTreeCheckpointHandler, 'restore', lambda *a, **k: pytest.fail('shown'))
  for name in storage.files(tmp_path / 'c' / 'arrays'):
    file = tmp_path / 'c' / 'arrays' / name
    good = file.read_bytes()
    file.write_bytes(bit_flip(good, None))
    with pytest.raises(errors.CheckpointError, match=f'arrays/{name} does not match its digest'):
      checkpoints.restore(tmp_path / 'c')
    file.write_bytes(good)


def test_what_orbax_raises_becomes_one_line(tmp_path, monkeypatch):
  checkpoints.save(tmp_path / 'c', state(1))
  monkeypatch.setattr(ocp.PyTreeCheckpointHandler, 'restore', lambda *a, **k: 1 / 0)
  with pytest.raises(errors.CheckpointError, match='Orbax cannot read arrays: division by zero'):
    checkpoints.restore(tmp_path / 'c')


def test_the_file_that_is_missing_or_short_is_named(tmp_path):
  checkpoints.save(tmp_path / 'c', state(1))
  file = tmp_path / 'c' / 'arrays' / 'manifest.ocdbt'
  file.write_bytes(file.read_bytes()[:-1])
  with pytest.raises(errors.CheckpointError, match=r'arrays/manifest.ocdbt has \d+ bytes, not'):
    checkpoints.restore(tmp_path / 'c')
  file.unlink()
  with pytest.raises(errors.CheckpointError, match=r'arrays/manifest.ocdbt is missing'):
    checkpoints.restore(tmp_path / 'c')


# ---- steps


def break_step(folder, step):
  arrays = storage.path(folder) / str(step) / 'arrays'
  for name, size in storage.files(arrays).items():
    storage.write_bytes(arrays / name, b'x' * size)


def latest_step(folder):
  found = folder.iterdir() if folder.exists() else []
  return max((int(p.name) for p in found if checkpoints.is_complete(p)), default=None)


def test_steps_are_pruned_only_after_the_new_one_is_complete(tmp_path, monkeypatch):
  for step in (1, 2, 10):
    step_checkpoints.save_step(tmp_path, step, state(step), keep=2)
  assert sorted(os.listdir(tmp_path)) == ['10', '2']
  assert latest_step(tmp_path) == 10
  removed = []
  remove = checkpoints.remove_checkpoint

  def look(folder):
    removed.append((folder.name, latest_step(tmp_path)))
    remove(folder)

  monkeypatch.setattr(checkpoints, 'remove_checkpoint', look)
  step_checkpoints.save_step(tmp_path, 11, state(11), keep=1)
  assert removed == [('11', 10), ('2', 11), ('10', 11)]


def test_newer_steps_are_never_pruned(tmp_path):
  for step in (1, 5, 3):
    step_checkpoints.save_step(tmp_path, step, state(step), keep=1)
  assert sorted(os.listdir(tmp_path)) == ['3', '5']


def test_a_failed_save_prunes_nothing(tmp_path, monkeypatch):
  step_checkpoints.save_step(tmp_path, 1, state(1), keep=1)
  with pytest.raises(errors.NumericsError):
    step_checkpoints.save_step(tmp_path, 2, {'a': jnp.array(jnp.nan)}, keep=1)
  monkeypatch.setattr(ocp.PyTreeCheckpointHandler, 'finalize', lambda *a: 1 / 0)
  with pytest.raises(errors.CheckpointError, match='/2 could not be saved'):
    step_checkpoints.save_step(tmp_path, 2, state(2), keep=1)
  monkeypatch.undo()
  step, tree, _ = step_checkpoints.restore_latest(tmp_path, state(0))
  assert step == 1 and same(tree, state(1))


def test_a_step_saved_twice_is_written_once_and_keeps_its_arrays(tmp_path, monkeypatch):
  step_checkpoints.save_step(tmp_path, 1, state(1), {'n': 1})
  with monkeypatch.context() as m:
    m.setattr(checkpoints, '_write_arrays', lambda *a: 1 / 0)
    step_checkpoints.save_step(tmp_path, 1, state(1), {'n': 2})
  assert step_checkpoints.restore_latest(tmp_path)[2] == {'n': 2, 'step': 1}
  step_checkpoints.save_step(tmp_path, 1, state(4))
  assert same(step_checkpoints.restore_latest(tmp_path, state(0))[1], state(4))


def test_it_falls_back_step_by_step_and_sets_damage_aside(tmp_path, logged):
  for step in (1, 2, 3):
    step_checkpoints.save_step(tmp_path, step, state(step))
  break_step(tmp_path, 3)
  (tmp_path / '2' / 'manifest.json').write_bytes(b'{}')
  damaged = storage.files(tmp_path / '3')
  step, tree, meta = step_checkpoints.restore_latest(tmp_path, state(0))
  assert step == 1 and same(tree, state(1)) and meta == {'step': 1}
  [three] = [n for n in os.listdir(tmp_path) if n.startswith('3.corrupt-')]
  assert sorted(os.listdir(tmp_path)) == ['1', '2.corrupt-manifest', three]
  assert storage.files(tmp_path / three) == damaged
  assert len(logged) == 2 and f'{tmp_path}/3' in logged[0] and f'{tmp_path}/2' in logged[1]
  # the same steps again, and again damaged: both stay
  step_checkpoints.save_step(tmp_path, 2, state(2))
  (tmp_path / '2' / 'manifest.json').write_bytes(b'')
  assert step_checkpoints.restore_latest(tmp_path, state(0))[0] == 1
  assert '2.corrupt-manifest-2' in os.listdir(tmp_path)


def test_when_every_step_is_damaged_each_is_listed_and_nothing_starts_afresh(tmp_path, logged):
  for step in (1, 2):
    step_checkpoints.save_step(tmp_path, step, state(step))
    break_step(tmp_path, step)
  for _ in range(2):  # also after they were set aside
    with pytest.raises(errors.CheckpointError, match='every step is damaged') as e:
      step_checkpoints.restore_latest(tmp_path, state(0))
    assert all(text in str(e.value) for text in ('1', '2', 'digest', 'remove the folder'))
  assert len(logged) == 2


def test_unfinished_steps_are_no_damage(tmp_path, logged):
  assert step_checkpoints.restore_latest(tmp_path / 'none') is None
  (tmp_path / '9').mkdir()
  assert step_checkpoints.restore_latest(tmp_path) is None
  assert latest_step(tmp_path) is None
  step_checkpoints.save_step(tmp_path, 1, state(1))
  assert os.listdir(tmp_path) == ['1']  # the half is gone once there is a whole one
  (tmp_path / '9').mkdir()
  assert latest_step(tmp_path) == 1
  assert step_checkpoints.restore_latest(tmp_path)[0] == 1 and not logged


def test_a_step_under_another_number_is_damage(tmp_path, logged):
  step_checkpoints.save_step(tmp_path, 1, state(1))
  shutil.copytree(tmp_path / '1', tmp_path / '2')
  assert step_checkpoints.restore_latest(tmp_path)[0] == 1
  assert '2.corrupt-manifest' in os.listdir(tmp_path)


def test_keep_must_be_positive(tmp_path):
  with pytest.raises(errors.ConfigError, match='keep=0 must be at least 1'):
    step_checkpoints.save_step(tmp_path, 1, state(1), keep=0)


KILLED = """
import sys, time
import jax.numpy as jnp
import orbax.checkpoint as ocp
from gdistill import checkpoints, storage
folder, where = sys.argv[1:]
def stop(*args, **kwargs):
  print('now', flush=True)
  time.sleep(60)
checkpoints.save_step(folder, 1, {'a': jnp.ones(3)}, keep=1)
if where == 'arrays':
  ocp.PyTreeCheckpointHandler.finalize = stop
else:
  storage._fsync = stop   # the manifest is on the disk, under its temporary name
  storage.sync_tree = lambda p: None
  storage.os.replace = stop
checkpoints.save_step(folder, 2, {'a': jnp.zeros(3)}, keep=1)
"""


@pytest.mark.parametrize('where', ['arrays', 'manifest'])
def test_kill_in_the_middle_of_a_save_leaves_the_step_before(tmp_path, where):
  env = {**os.environ, 'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'}
  command = [sys.executable, '-c', KILLED, str(tmp_path), where]
  with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as p:
    try:
      assert p.stdout.readline() == 'now\n'
    finally:
      p.kill()
  assert (tmp_path / '2' / 'arrays').exists()
  step, tree, _ = step_checkpoints.restore_latest(tmp_path, {'a': jnp.ones(3)})
  assert step == 1 and same(tree, {'a': jnp.ones(3)})
  step_checkpoints.save_step(tmp_path, 2, {'a': jnp.zeros(3)}, keep=1)
  assert step_checkpoints.restore_latest(tmp_path)[0] == 2
  assert os.listdir(tmp_path) == ['2']


# ---- rounds


CARD = {'stage': 'progressive', 'num_steps': 4}


def test_a_round_is_finished_by_its_card(tmp_path, monkeypatch):
  params = state(1).params
  with monkeypatch.context() as m:
    m.setattr(storage, 'write_once', lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      finished_rounds.finish(tmp_path / 'r', params, CARD)
  assert not finished_rounds.is_finished(tmp_path / 'r')
  with pytest.raises(errors.CheckpointError, match=r'without card.json: it was not finished'):
    finished_rounds.read_params(tmp_path / 'r')
  card = finished_rounds.finish(tmp_path / 'r', params, CARD)
  assert finished_rounds.is_finished(tmp_path / 'r')
  assert finished_rounds.read_card(tmp_path / 'r') == card
  assert card == {**CARD, 'params_digest': finished_rounds.params_digest(tmp_path / 'r')}
  chex.assert_trees_all_equal(finished_rounds.read_params(tmp_path / 'r', params), params)


def test_a_finished_round_is_never_rewritten(tmp_path):
  finished_rounds.finish(tmp_path, state(1).params, CARD)
  before = {n: (tmp_path / n).read_bytes() for n in storage.files(tmp_path)}
  finished_rounds.finish(tmp_path, state(1).params, CARD)
  with pytest.raises(errors.CheckpointError, match='is finished, with other parameters'):
    finished_rounds.finish(tmp_path, state(2).params, CARD)
  assert before == {n: (tmp_path / n).read_bytes() for n in storage.files(tmp_path)}


def test_the_digest_of_parameters_depends_on_nothing_else(tmp_path):
  for i, seed in enumerate((1, 1, 2)):
    finished_rounds.finish(tmp_path / str(i), state(seed).params, {'n': i})
  one, again, other = (finished_rounds.params_digest(tmp_path / str(i)) for i in range(3))
  assert one == again != other


def test_a_card_that_was_changed_is_refused(tmp_path):
  finished_rounds.finish(tmp_path, state(1).params, CARD)
  text = (tmp_path / 'card.json').read_text()
  (tmp_path / 'card.json').write_text(text.replace('"num_steps": 4', '"num_steps": 5'))
  with pytest.raises(errors.CheckpointError, match=r'card.json cannot be trusted'):
    finished_rounds.read_card(tmp_path)


def test_parameters_of_another_round_are_refused(tmp_path):
  for seed in (1, 2):
    finished_rounds.finish(tmp_path / str(seed), state(seed).params, CARD)
  shutil.rmtree(tmp_path / '1' / 'params')
  shutil.copytree(tmp_path / '2' / 'params', tmp_path / '1' / 'params')
  with pytest.raises(errors.CheckpointError, match='written for other parameters'):
    finished_rounds.read_params(tmp_path / '1')


@pytest.mark.parametrize(
  'name, kind, text',
  [
    ('none', errors.CheckpointError, 'none does not exist'),
    ('plain', errors.ConfigError, 'is not a round folder'),
    ('model.pt', errors.ConfigError, 'model.pt is a .pt file.*name WORKDIR'),
    ('model.SAFETENSORS', errors.ConfigError, 'not a round folder; name'),
    ('none.ckpt', errors.ConfigError, 'not a round folder; name'),
  ],
)
def test_what_is_no_round_is_said_to_be_none(tmp_path, name, kind, text):
  (tmp_path / 'plain').mkdir()
  (tmp_path / 'model.pt').write_bytes(b'')
  with pytest.raises(kind, match=text):
    finished_rounds.read_params(tmp_path / name)


# ---- object stores, which know neither append nor rename


def refuse(*args, **kwargs):
  raise NotImplementedError('an object store cannot do this')


class Memory(memory.MemoryFileSystem):
  protocol = 's3'
  cachable = False
  mv = move = rename = copy = cp_file = refuse

  @classmethod
  def _strip_protocol(cls, path):
    return '/' + str(path).removeprefix('s3://').strip('/')

  def _open(self, path, mode='rb', **kwargs):
    assert 'a' not in mode and '+' not in mode
    return super()._open(path, mode, **kwargs)


@pytest.fixture(params=['memory', 'moto'])
def bucket(request, monkeypatch):
  if request.param == 'memory':
    store = Memory()
    store.store, store.pseudo_dirs = {}, ['']
    store.mkdir('s3://bucket')
    monkeypatch.setattr(backend.fsspec_backend, '_get_filesystem', lambda name: store)
    yield 's3://bucket'
    return
  with stores.s3(monkeypatch) as name:
    import s3fs

    for forbidden in ('mv', 'move', 'rename', 'copy', 'cp_file'):
      monkeypatch.setattr(s3fs.S3FileSystem, forbidden, refuse)
    store = s3fs.S3FileSystem(skip_instance_cache=True)
    monkeypatch.setattr(backend.fsspec_backend, '_get_filesystem', lambda name: store)
    yield name


@pytest.mark.filterwarnings('ignore')
def test_a_workdir_lives_in_an_object_store(bucket, logged):
  run = f'{bucket}/run'
  assert storage.list_dir(run) == [] and step_checkpoints.restore_latest(f'{run}/steps') is None
  with ledger.Lock(run, lease_seconds=1) as lock:
    with pytest.raises(errors.ConfigError, match='in use'), ledger.Lock(run):
      pass
    for i in range(2):
      ledger.record(run, 'tick', index=i)
    for step in (1, 2, 3):
      step_checkpoints.save_step(f'{run}/steps', step, state(step), keep=2)
    lock.check()
  assert [e['index'] for e in ledger.ledger(run)] == [0, 1]
  assert sorted(storage.list_dir(run)) == ['ledger', 'steps']
  assert storage.list_dir(f'{run}/steps') == ['2', '3']
  step, tree, _ = step_checkpoints.restore_latest(f'{run}/steps', state(0))
  assert step == 3 and same(tree, state(3))

  break_step(f'{run}/steps', 3)
  step, tree, _ = step_checkpoints.restore_latest(f'{run}/steps', state(0))
  assert step == 2 and same(tree, state(2)) and len(logged) == 1
  assert storage.read_json(f'{run}/steps/3/CORRUPT.json')['why'] == 'digest'
  storage.remove(f'{run}/steps/2/manifest.json')
  with pytest.raises(errors.CheckpointError, match='every step is damaged: 3'):
    step_checkpoints.restore_latest(f'{run}/steps', state(0))

  params = state(1).params
  assert not finished_rounds.is_finished(f'{run}/r')
  finished_rounds.finish(f'{run}/r', params, CARD)
  assert same(finished_rounds.read_params(f'{run}/r', params), params)
  storage.remove_tree(f'{run}/r')
  assert storage.files(f'{run}/r') == {}


def test_a_store_that_cannot_be_reached_is_no_damage(bucket, monkeypatch, logged):
  step_checkpoints.save_step(f'{bucket}/steps', 1, state(1))
  read = storage.read_bytes

  def down(p):
    if 'ocdbt' in str(p):
      raise errors.CheckpointError(f'cannot read {p}: timed out')
    return read(p)

  monkeypatch.setattr(storage, 'read_bytes', down)
  with pytest.raises(errors.CheckpointError, match='timed out'):
    step_checkpoints.restore_latest(f'{bucket}/steps')
  monkeypatch.setattr(storage, 'read_bytes', read)
  assert step_checkpoints.restore_latest(f'{bucket}/steps')[0] == 1 and not logged


def test_folders_may_be_named_relative_to_where_one_stands(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  checkpoints.save('runs/one', {'a': np.arange(3.0)})
  np.testing.assert_array_equal(checkpoints.restore('runs/one')['a'], np.arange(3.0))


def test_a_save_in_the_background_keeps_what_was_when_it_was_asked_for(tmp_path, monkeypatch):
  go, inner = threading.Event(), step_checkpoints.save_step

  def slow(*args, **kwargs):
    assert go.wait(30)
    return inner(*args, **kwargs)

  monkeypatch.setattr(step_checkpoints, 'save_step', slow)
  state = {'a': jnp.arange(4.0)}
  with step_checkpoints.Saver(tmp_path / 'steps', keep=1) as saver:
    saver.save(5, state)  # returns though nothing is written yet
    assert latest_step(tmp_path / 'steps') is None
    moved = jax.jit(lambda a: a + 100.0, donate_argnums=0)(state['a'])  # in the same memory
    assert state['a'].is_deleted()
    state = {'a': moved}
    saver.check()
    go.set()
    saver.wait()
    assert list(step_checkpoints.restore_latest(tmp_path / 'steps')[1]['a']) == [0.0, 1.0, 2.0, 3.0]
    saver.save(6, state)
  step, found, _ = step_checkpoints.restore_latest(tmp_path / 'steps')
  assert step == 6 and list(found['a']) == [100.0, 101.0, 102.0, 103.0]
  assert sorted(p.name for p in (tmp_path / 'steps').iterdir()) == ['6']


@pytest.mark.parametrize('ask', ['check', 'wait', 'save'])
def test_a_save_that_failed_in_the_background_is_raised_by_whatever_comes_next(tmp_path, ask):
  with step_checkpoints.Saver(tmp_path / 'steps', keep=1) as saver:
    saver.save(7, {'a': np.array([1.0, np.nan])})
    saver._thread.submit(lambda: None).result()  # the one thread has ended the save before
    with pytest.raises(errors.NumericsError, match=r'steps/7: leaf .a. is not finite'):
      getattr(saver, ask)(*((8, {'a': np.ones(2)}) if ask == 'save' else ()))
    saver.wait()  # said once
  assert latest_step(tmp_path / 'steps') is None


def test_a_save_that_fails_once_is_tried_once_more(tmp_path, monkeypatch):
  monkeypatch.setattr(step_checkpoints, '_RETRY', 0.0)
  faults, inner = iter([True, False, True, True]), checkpoints._write_arrays

  def write(*args):
    if next(faults):
      raise OSError('no space left')
    inner(*args)

  monkeypatch.setattr(checkpoints, '_write_arrays', write)
  with step_checkpoints.Saver(tmp_path / 'steps', keep=1) as saver:
    saver.save(3, {'a': np.ones(2)})
  assert latest_step(tmp_path / 'steps') == 3
  with (
    pytest.raises(errors.CheckpointError, match=r'steps/4 could not be saved: no space left'),
    step_checkpoints.Saver(tmp_path / 'steps', keep=1) as saver,
  ):
    saver.save(4, {'a': np.ones(2)})  # and nobody asks before the end
  assert latest_step(tmp_path / 'steps') == 3


def test_who_lost_its_lock_completes_no_step_and_removes_none(tmp_path):
  step_checkpoints.save_step(tmp_path / 'steps', 1, {'a': np.ones(2)})

  def lost():
    raise errors.ConfigError('another run has the lock')

  with pytest.raises(errors.ConfigError, match='has the lock'):  # noqa: SIM117
    with step_checkpoints.Saver(tmp_path / 'steps', 1, lost) as saver:
      saver.save(2, {'a': np.ones(2)})
  assert latest_step(tmp_path / 'steps') == 1
  assert (tmp_path / 'steps' / '2' / 'arrays').exists()  # which is the other one's by now


def test_a_step_is_not_half_because_its_store_cannot_be_asked(tmp_path, monkeypatch):
  for s in (1, 2, 3):
    step_checkpoints.save_step(tmp_path / 'steps', s, {'a': np.ones(2)})
  exists = storage.exists
  monkeypatch.setattr(storage, 'exists', lambda p: 'manifest' not in str(p) and exists(p))
  step_checkpoints._prune(storage.path(tmp_path / 'steps'), 4, 3)
  monkeypatch.undo()
  assert sorted(p.name for p in (tmp_path / 'steps').iterdir()) == ['1', '2', '3']


def test_a_failed_save_does_not_hide_what_ended_the_run(tmp_path, logged):
  with pytest.raises(errors.Preempted), step_checkpoints.Saver(tmp_path / 'steps', keep=1) as saver:
    saver.save(7, {'a': np.array([np.nan])})
    raise errors.Preempted('SIGTERM')
  assert 'a save failed as well' in logged[0] and 'not finite' in logged[0]
