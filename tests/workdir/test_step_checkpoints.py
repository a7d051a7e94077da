"""Tests of a round's numbered checkpoints: pruned, saved in the background, restored."""

import os
import pathlib
import shutil
import subprocess
import sys
import threading

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import stores
import trees
import waits
from jax import numpy as jnp

from gdistill import errors
from gdistill.workdir import checkpoints
from gdistill.workdir import finished as finished_rounds
from gdistill.workdir import ledger
from gdistill.workdir import step_checkpoints
from gdistill.workdir import storage

ROOT = pathlib.Path(__file__).parents[2]


def break_step(folder, step):
  """Overwrites the arrays of a step with bytes of the same number."""
  arrays = storage.path(folder) / str(step) / 'arrays'
  for name, size in storage.files(arrays).items():
    storage.write_bytes(arrays / name, b'x' * size)


def latest_step(folder):
  """Returns the newest complete step, or None."""
  found = folder.iterdir() if folder.exists() else []
  return max((int(p.name) for p in found if checkpoints.is_complete(p)), default=None)


def test_steps_are_pruned_only_after_the_new_one_is_complete(tmp_path, monkeypatch):
  for step in (1, 2, 10):
    step_checkpoints.save_step(tmp_path, step, trees.state(step), keep=2)
  assert sorted(os.listdir(tmp_path)) == ['10', '2']
  assert latest_step(tmp_path) == 10
  removed = []
  remove = checkpoints.remove

  def look(folder):
    removed.append((folder.name, latest_step(tmp_path)))
    remove(folder)

  monkeypatch.setattr(checkpoints, 'remove', look)
  step_checkpoints.save_step(tmp_path, 11, trees.state(11), keep=1)
  assert removed == [('11', 10), ('2', 11), ('10', 11)]


def test_newer_steps_are_never_pruned(tmp_path):
  for step in (1, 5, 3):
    step_checkpoints.save_step(tmp_path, step, trees.state(step), keep=1)
  assert sorted(os.listdir(tmp_path)) == ['3', '5']


def test_a_failed_save_prunes_nothing(tmp_path, monkeypatch):
  step_checkpoints.save_step(tmp_path, 1, trees.state(1), keep=1)
  with pytest.raises(errors.NumericsError):
    step_checkpoints.save_step(tmp_path, 2, {'a': jnp.array(jnp.nan)}, keep=1)
  monkeypatch.setattr(ocp.PyTreeCheckpointHandler, 'finalize', lambda *a: 1 / 0)
  with pytest.raises(errors.CheckpointError, match='/2 could not be saved'):
    step_checkpoints.save_step(tmp_path, 2, trees.state(2), keep=1)
  monkeypatch.undo()
  step, tree, _ = step_checkpoints.restore_latest(tmp_path, trees.state(0))
  assert step == 1 and trees.same(tree, trees.state(1))


def test_a_step_saved_twice_is_written_once_and_keeps_its_arrays(tmp_path, monkeypatch):
  step_checkpoints.save_step(tmp_path, 1, trees.state(1), {'n': 1})
  with monkeypatch.context() as m:
    m.setattr(checkpoints, '_write_arrays', lambda *a: 1 / 0)
    step_checkpoints.save_step(tmp_path, 1, trees.state(1), {'n': 2})
  assert step_checkpoints.restore_latest(tmp_path)[2] == {'n': 2, 'step': 1}
  step_checkpoints.save_step(tmp_path, 1, trees.state(4))
  assert trees.same(step_checkpoints.restore_latest(tmp_path, trees.state(0))[1], trees.state(4))


def test_it_falls_back_step_by_step_and_sets_damage_aside(tmp_path, logged):
  for step in (1, 2, 3):
    step_checkpoints.save_step(tmp_path, step, trees.state(step))
  break_step(tmp_path, 3)
  (tmp_path / '2' / 'manifest.json').write_bytes(b'{}')
  damaged = storage.files(tmp_path / '3')
  step, tree, meta = step_checkpoints.restore_latest(tmp_path, trees.state(0))
  assert step == 1 and trees.same(tree, trees.state(1)) and meta == {'step': 1}
  [three] = [n for n in os.listdir(tmp_path) if n.startswith('3.corrupt-')]
  assert sorted(os.listdir(tmp_path)) == ['1', '2.corrupt-manifest', three]
  assert storage.files(tmp_path / three) == damaged
  assert len(logged) == 2 and f'{tmp_path}/3' in logged[0] and f'{tmp_path}/2' in logged[1]
  # Step 2 is saved again and damaged again: both damaged copies are kept.
  step_checkpoints.save_step(tmp_path, 2, trees.state(2))
  (tmp_path / '2' / 'manifest.json').write_bytes(b'')
  assert step_checkpoints.restore_latest(tmp_path, trees.state(0))[0] == 1
  assert '2.corrupt-manifest-2' in os.listdir(tmp_path)


def test_when_every_step_is_damaged_each_is_listed_and_nothing_starts_afresh(tmp_path, logged):
  for step in (1, 2):
    step_checkpoints.save_step(tmp_path, step, trees.state(step))
    break_step(tmp_path, step)
  for _ in range(2):  # the second time, the steps have been set aside already
    with pytest.raises(errors.CheckpointError, match='every step is damaged') as e:
      step_checkpoints.restore_latest(tmp_path, trees.state(0))
    assert all(text in str(e.value) for text in ('1', '2', 'digest', 'remove the folder'))
  assert len(logged) == 2


def test_unfinished_steps_are_no_damage(tmp_path, logged):
  assert step_checkpoints.restore_latest(tmp_path / 'none') is None
  (tmp_path / '9').mkdir()
  assert step_checkpoints.restore_latest(tmp_path) is None
  assert latest_step(tmp_path) is None
  step_checkpoints.save_step(tmp_path, 1, trees.state(1))
  assert os.listdir(tmp_path) == ['1']  # a complete save removed the incomplete step
  (tmp_path / '9').mkdir()
  assert latest_step(tmp_path) == 1
  assert step_checkpoints.restore_latest(tmp_path)[0] == 1 and not logged


def test_a_step_under_another_number_is_damage(tmp_path, logged):
  step_checkpoints.save_step(tmp_path, 1, trees.state(1))
  shutil.copytree(tmp_path / '1', tmp_path / '2')
  assert step_checkpoints.restore_latest(tmp_path)[0] == 1
  assert '2.corrupt-manifest' in os.listdir(tmp_path)


def test_keep_must_be_positive(tmp_path):
  with pytest.raises(errors.ConfigError, match='keep=0 must be at least 1'):
    step_checkpoints.save_step(tmp_path, 1, trees.state(1), keep=0)


KILLED = """
import sys, time
import jax.numpy as jnp
import orbax.checkpoint as ocp
from gdistill.workdir import step_checkpoints, storage
folder, where = sys.argv[1:]
def stop(*args, **kwargs):
  print('now', flush=True)
  time.sleep(3600)
step_checkpoints.save_step(folder, 1, {'a': jnp.ones(3)}, keep=1)
if where == 'arrays':
  ocp.PyTreeCheckpointHandler.finalize = stop
else:
  storage._fsync = stop  # the manifest is on the disk, under its temporary name
  storage.sync_tree = lambda p: None
  storage.os.replace = stop
step_checkpoints.save_step(folder, 2, {'a': jnp.zeros(3)}, keep=1)
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
  assert step == 1 and trees.same(tree, {'a': jnp.ones(3)})
  step_checkpoints.save_step(tmp_path, 2, {'a': jnp.zeros(3)}, keep=1)
  assert step_checkpoints.restore_latest(tmp_path)[0] == 2
  assert os.listdir(tmp_path) == ['2']


def test_a_save_in_the_background_keeps_what_was_when_it_was_asked_for(tmp_path, monkeypatch):
  go, inner = threading.Event(), step_checkpoints.save_step

  def slow(*args, **kwargs):
    assert go.wait(waits.SECONDS)
    return inner(*args, **kwargs)

  monkeypatch.setattr(step_checkpoints, 'save_step', slow)
  state = {'a': jnp.arange(4.0)}
  with step_checkpoints.Saver(tmp_path / 'steps', keep=1) as saver:
    saver.save(5, state)  # returns before anything is written
    assert latest_step(tmp_path / 'steps') is None
    moved = jax.jit(lambda a: a + 100.0, donate_argnums=0)(
      state['a']
    )  # the result takes over the memory
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
    saver._thread.submit(lambda: None).result()  # by then the only thread has ended the save
    with pytest.raises(errors.NumericsError, match=r'steps/7: leaf .a. is not finite'):
      getattr(saver, ask)(*((8, {'a': np.ones(2)}) if ask == 'save' else ()))
    saver.wait()  # the error is raised only once
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
    saver.save(4, {'a': np.ones(2)})  # the error is raised at the end of the block
  assert latest_step(tmp_path / 'steps') == 3


def test_who_lost_its_lock_completes_no_step_and_removes_none(tmp_path):
  step_checkpoints.save_step(tmp_path / 'steps', 1, {'a': np.ones(2)})

  def lost():
    raise errors.ConfigError('another run has the lock')

  with pytest.raises(errors.ConfigError, match='has the lock'):  # noqa: SIM117
    with step_checkpoints.Saver(tmp_path / 'steps', 1, lost) as saver:
      saver.save(2, {'a': np.ones(2)})
  assert latest_step(tmp_path / 'steps') == 1
  assert (tmp_path / 'steps' / '2' / 'arrays').exists()  # the folder belongs to the other run


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


@pytest.fixture(params=['memory', 'moto'])
def bucket(request, monkeypatch):
  if request.param == 'memory':
    yield stores.in_memory(monkeypatch)
    return
  with stores.s3(monkeypatch) as name:
    stores.without_rename(monkeypatch)
    yield name


@pytest.mark.full
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
      step_checkpoints.save_step(f'{run}/steps', step, trees.state(step), keep=2)
    lock.check()
  assert [e['index'] for e in ledger.ledger(run)] == [0, 1]
  assert sorted(storage.list_dir(run)) == ['ledger', 'steps']
  assert storage.list_dir(f'{run}/steps') == ['2', '3']
  step, tree, _ = step_checkpoints.restore_latest(f'{run}/steps', trees.state(0))
  assert step == 3 and trees.same(tree, trees.state(3))

  break_step(f'{run}/steps', 3)
  step, tree, _ = step_checkpoints.restore_latest(f'{run}/steps', trees.state(0))
  assert step == 2 and trees.same(tree, trees.state(2)) and len(logged) == 1
  assert storage.read_json(f'{run}/steps/3/CORRUPT.json')['why'] == 'digest'
  storage.remove(f'{run}/steps/2/manifest.json')
  with pytest.raises(errors.CheckpointError, match='every step is damaged: 3'):
    step_checkpoints.restore_latest(f'{run}/steps', trees.state(0))

  params = trees.state(1).params
  assert not finished_rounds.is_finished(f'{run}/r')
  finished_rounds.finish(f'{run}/r', params, {'stage': 'progressive'})
  assert trees.same(finished_rounds.read_params(f'{run}/r', params), params)
  storage.remove_tree(f'{run}/r')
  assert storage.files(f'{run}/r') == {}


def test_a_store_that_cannot_be_reached_is_no_damage(bucket, monkeypatch, logged):
  step_checkpoints.save_step(f'{bucket}/steps', 1, trees.state(1))
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
