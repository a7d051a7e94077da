"""Tests of damaged checkpoints: a restore returns the newest step intact, or the step before."""

import contextlib
import os
import random
import shutil
import tempfile

import jax
import micro
import numpy as np
import pytest
from absl import logging

from gdistill import errors
from gdistill.cli import config_file
from gdistill.recipe import reading
from gdistill.rounds import network as networks
from gdistill.training import step as train_step
from gdistill.workdir import finished as finished_rounds
from gdistill.workdir import state as states
from gdistill.workdir import step_checkpoints
from gdistill.workdir import storage

DAMAGES = ('empty', 'half', 'a byte short', 'gone', 'a bit', 'a byte more', 'the older one')


def state_of(recipe, seed):
  """Returns a training state with all its parts: parameters, EMA, optimiser moments, counters."""
  net = networks.build(recipe.model, recipe.takes_w, noise_settings=recipe.noise)
  state = jax.jit(
    lambda key: states.create(
      networks.initial_params(net, recipe.model, key), train_step.optimizer(recipe.guidance), True
    )
  )(jax.random.key(seed))
  moments = jax.tree.map(lambda a: a + seed, state.opt)
  return state.replace(opt=moments, step=state.step + seed)


def bits(tree):
  return [(np.asarray(a).dtype, np.asarray(a).tobytes()) for a in jax.tree.leaves(tree)]


class Steps:
  """Steps 1 and 2 of a round in a folder, of which `copied` makes an undamaged copy each time."""

  def __init__(self, folder, recipe):
    self.sound, self.folder = folder / 'sound', folder / 'steps'
    self.trees = {s: state_of(recipe, s) for s in (1, 2)}
    for step, tree in self.trees.items():
      step_checkpoints.save_step(self.sound, step, tree)
    self.bits = {s: bits(tree) for s, tree in self.trees.items()}
    self.files = sorted(storage.files(self.sound / '2'))

  def copied(self):
    shutil.rmtree(self.folder, ignore_errors=True)
    shutil.copytree(self.sound, self.folder)
    return self.folder / '2'

  def outcome(self):
    """Returns 'right', 'the step before', 'refused' or 'SILENTLY WRONG'."""
    try:
      step, tree, _ = step_checkpoints.restore_latest(self.folder, self.trees[1])
    except errors.CheckpointError as e:
      assert '\n' not in str(e)
      return 'refused'
    same = bits(tree) == self.bits[step]
    return ('right' if step == 2 else 'the step before') if same else 'SILENTLY WRONG'


def recipe_of(size):
  if size == 'micro':
    return micro.recipe()
  return reading.from_config(config_file.load('configs/digits.py', []))


@pytest.fixture
def steps(request, tmp_path, monkeypatch):
  monkeypatch.setattr(logging, 'error', lambda *args: None)
  return Steps(tmp_path, recipe_of(request.param))


def hurt(file, kind, older):
  data = file.read_bytes()
  at = len(data) // 2
  match kind:
    case 'gone':
      file.unlink()
      return
    case 'the older one':
      file.write_bytes(older)
      return
    case 'a bit':
      data = data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :]
    case _:
      cut = {'empty': b'', 'half': data[:at], 'a byte short': data[:-1]}
      data = cut.get(kind, data + b'x')
  file.write_bytes(data)


@pytest.mark.parametrize(
  'steps',
  [
    pytest.param('micro', marks=pytest.mark.full),
    pytest.param('digits', marks=pytest.mark.soak),
  ],
  indirect=True,
)
def test_every_file_in_every_way(steps, record_property):
  found = []
  for kind in DAMAGES:
    for name in steps.files:
      newest = steps.copied()
      # The number and the names of Orbax's data files differ between saves.
      older = steps.folder / '1' / name
      others = [steps.folder / '1' / n for n in sorted(storage.files(steps.folder / '1'))]
      before = (newest / name).read_bytes()
      hurt(newest / name, kind, (older if older.exists() else others[0]).read_bytes())
      changed = not (newest / name).exists() or (newest / name).read_bytes() != before
      found.append(steps.outcome())
      assert found[-1] == ('the step before' if changed else 'right'), (kind, name)
  count = {kind: found.count(kind) for kind in sorted(set(found))}
  record_property('files damaged', f'{len(found)}: {count}')


CASES = [
  pytest.param('micro', 20, id='20'),
  pytest.param('micro', 200, id='200', marks=pytest.mark.full),
  pytest.param('digits', 2000, id='2000', marks=pytest.mark.soak),
]


@pytest.mark.parametrize(('steps', 'count'), CASES, indirect=['steps'])
def test_a_flipped_bit_anywhere(steps, count, record_property):
  draw, found = random.Random(0), []
  sizes = storage.files(steps.sound / '2')
  for i in range(count):
    newest = steps.copied()
    # Every second file is drawn by size: most bits belong to arrays, but most files do not.
    weights = None if i % 2 else list(sizes.values())
    file = newest / draw.choices(list(sizes), weights)[0]
    data = bytearray(file.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    file.write_bytes(bytes(data))
    found.append(steps.outcome())
  assert found.count('the step before') == count
  record_property('bits flipped', f'{count}: {found.count("SILENTLY WRONG")} silently wrong')


@contextlib.contextmanager
def nobody():
  """Runs the block as an unprivileged user, because root may read every file."""
  if os.geteuid() == 0:
    os.seteuid(65534)
    try:
      yield
    finally:
      os.seteuid(0)
  else:
    yield


def test_what_may_not_be_read_is_no_damage_that_is_passed_over_in_silence(monkeypatch):
  lines = []
  monkeypatch.setattr(logging, 'error', lambda text, *args: lines.append(text % args))
  with tempfile.TemporaryDirectory() as folder:
    os.chmod(folder, 0o777)  # noqa: S103
    steps = storage.path(folder) / 'steps'
    with nobody():
      for step in (1, 2):
        step_checkpoints.save_step(steps, step, {'a': np.full(3, step)})
      manifest = steps / '2' / 'manifest.json'
      os.chmod(manifest, 0o000)
      step, tree, _ = step_checkpoints.restore_latest(steps)
    assert step == 1 and list(tree['a']) == [1, 1, 1]
    assert len(lines) == 1 and 'is set aside (unreadable)' in lines[0]
    assert (steps / '2.corrupt-unreadable').exists()


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('where', ['params', 'ema', 'mu', 'nu', 'skipped'])
def test_a_state_that_is_not_finite_is_never_saved_and_its_leaf_is_named(tmp_path, where, value):
  state = state_of(micro.recipe(), 1)
  broken = lambda tree: jax.tree.map(lambda a: a.at[(-1,) * a.ndim].set(value), tree)
  adam = state.opt[0]
  match where:
    case 'skipped':
      state = state.replace(skipped=np.float32(value))
    case 'mu' | 'nu':
      moments = adam._replace(**{where: broken(getattr(adam, where))})
      state = state.replace(opt=(moments, *state.opt[1:]))
    case _:
      state = state.replace(**{where: broken(getattr(state, where))})
  step_checkpoints.save_step(tmp_path / 'steps', 1, {'a': np.ones(2)})
  with pytest.raises(
    errors.NumericsError, match=rf'leaf .*{where}.* is not finite, so nothing was'
  ):
    step_checkpoints.save_step(tmp_path / 'steps', 2, state)
  assert sorted(p.name for p in (tmp_path / 'steps').iterdir()) == ['1']
  if where == 'params':
    with pytest.raises(errors.NumericsError, match='is not finite'):
      finished_rounds.finish(tmp_path / 'round', state.params, {})
    assert not finished_rounds.is_finished(tmp_path / 'round')
