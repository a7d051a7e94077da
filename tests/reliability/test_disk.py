"""Tests of a full disk: the error names the step, no step is lost, and the run resumes later."""

import errno
import os
import subprocess

import disturbed
import numpy as np
import pytest

from gdistill import errors
from gdistill.workdir import checkpoints
from gdistill.workdir import step_checkpoints
from gdistill.workdir import storage

SIZE = 4 << 20  # size of a checkpoint in bytes


@pytest.fixture
def disk(tmp_path):
  """Mounts a small file system with room for two and a half checkpoints."""
  folder = tmp_path / 'disk'
  folder.mkdir()
  size = f'size={SIZE * 5 // 2}'
  done = subprocess.run(
    ['mount', '-t', 'tmpfs', '-o', size, 'tmpfs', str(folder)], capture_output=True, text=True
  )
  if done.returncode:
    pytest.skip(f'needs root, to mount a small disk: {done.stderr.strip()}')
  yield folder
  subprocess.run(['umount', str(folder)], check=True)


def tree(step):
  return {'a': np.random.default_rng(step).integers(256, size=SIZE, dtype=np.uint8)}


def sound(steps, wanted):
  """Checks that the folder holds exactly the wanted steps, each with the right bits."""
  assert sorted(p.name for p in steps.iterdir()) == [str(s) for s in wanted]
  for s in wanted:
    np.testing.assert_array_equal(checkpoints.restore(steps / str(s))['a'], tree(s)['a'])


def test_a_save_for_which_there_is_no_room_names_its_step_and_leaves_the_older_ones(disk):
  steps = disk / 'steps'
  for s in (1, 2):
    step_checkpoints.save_step(steps, s, tree(s))
  with pytest.raises(
    errors.CheckpointError, match=r'steps/3 could not be saved: .* are free; free'
  ):
    step_checkpoints.save_step(steps, 3, tree(3))
  sound(steps, [1, 2])
  storage.remove_tree(steps / '1')
  step_checkpoints.save_step(steps, 3, tree(3))
  sound(steps, [2, 3])


def test_a_disk_that_fills_up_in_the_middle_of_a_save_has_no_halves_after_it(disk, monkeypatch):
  steps = disk / 'steps'
  for s in (1, 2):
    step_checkpoints.save_step(steps, s, tree(s))
  # The check before the save finds room: another program may fill the disk during the save.
  monkeypatch.setattr(storage, 'free', lambda p: 1 << 60)
  with pytest.raises(errors.CheckpointError, match=r'steps/3 could not be saved'):
    step_checkpoints.save_step(steps, 3, tree(3))
  sound(steps, [1, 2])


def test_in_the_background_older_steps_make_room_and_only_then_it_fails(disk, monkeypatch):
  monkeypatch.setattr(step_checkpoints, '_RETRY', 0.0)
  steps = disk / 'steps'
  with step_checkpoints.Saver(steps, keep=3) as saver:
    for s in (1, 2, 3):
      saver.save(s, tree(s))
  sound(steps, [2, 3])  # step 1 was removed to make room
  storage.remove_tree(steps / '2')
  (disk / 'ballast').write_bytes(bytes(SIZE))
  with pytest.raises(errors.CheckpointError, match=r'steps/4 could not be saved'):  # noqa: SIM117
    with step_checkpoints.Saver(steps, keep=3) as saver:
      saver.save(4, tree(4))  # the error is raised at the end of the block
  sound(steps, [3])
  (disk / 'ballast').unlink()
  with step_checkpoints.Saver(steps, keep=3) as saver:
    saver.save(4, tree(4))
  sound(steps, [3, 4])


def test_what_is_not_sound_makes_no_room_for_what_may_fail(disk, monkeypatch):
  monkeypatch.setattr(step_checkpoints, '_RETRY', 0.0)
  steps = disk / 'steps'
  for s in (1, 2):
    step_checkpoints.save_step(steps, s, tree(s))
  largest = max((steps / '2' / 'arrays').rglob('*'), key=lambda p: p.stat().st_size)
  data = bytearray(largest.read_bytes())
  data[-1] ^= 1
  largest.write_bytes(bytes(data))
  with pytest.raises(errors.CheckpointError, match='steps/3 could not be saved'):  # noqa: SIM117
    with step_checkpoints.Saver(steps, keep=3) as saver:
      saver.save(3, tree(3))
  np.testing.assert_array_equal(checkpoints.restore(steps / '1')['a'], tree(1)['a'])


def test_another_fault_than_a_full_disk_costs_no_step(tmp_path, monkeypatch):
  monkeypatch.setattr(step_checkpoints, '_RETRY', 0.0)
  steps, small = tmp_path / 'steps', {'a': np.ones(3)}
  for s in (1, 2, 3):
    step_checkpoints.save_step(steps, s, small)

  def refuse(*args):
    raise PermissionError('not yours')

  monkeypatch.setattr(checkpoints, '_write_arrays', refuse)
  with pytest.raises(errors.CheckpointError, match='not yours'):  # noqa: SIM117
    with step_checkpoints.Saver(steps, keep=3) as saver:
      saver.save(4, small)
  assert sorted(p.name for p in steps.iterdir()) == ['1', '2', '3']


@pytest.mark.full
def test_a_run_on_a_full_disk_ends_with_4_and_goes_on_once_there_is_room(disk, undisturbed):
  disturbed.config(disk / 'run')
  left = disturbed.at('first compile', disk / 'run')  # the config and the ledger exist by then
  assert left.code == -9
  ballast = os.open(disk / 'ballast', os.O_CREAT | os.O_WRONLY)
  with pytest.raises(OSError) as e:
    while True:
      os.write(ballast, bytes(4096))
  assert e.value.errno == errno.ENOSPC
  done = disturbed.run(disk / 'run')
  assert done.returncode == 4, done.stderr
  assert 'No space left' in done.stderr.splitlines()[-1] and 'Traceback' not in done.stderr
  os.ftruncate(ballast, SIZE)  # makes room for a part of the run
  os.close(ballast)
  done = disturbed.run(disk / 'run')
  if done.returncode:
    assert done.returncode == 4, done.stderr
    (disk / 'ballast').unlink()
    done = disturbed.run(disk / 'run')
  assert done.returncode == 0, done.stderr
  assert disturbed.digests(disk / 'run') == disturbed.digests(undisturbed)
