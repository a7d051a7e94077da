"""Tests of a run on several meshes: the noise is equal, losses and parameters up to rounding."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import micro
import numpy as np
import pytest

from gdistill.workdir import finished as finished_rounds

ROOT = pathlib.Path(__file__).parents[2]
pytestmark = pytest.mark.full

MESHES = {  # {name: (processes, microbatches, mesh of each process)}
  'eight devices': (1, 1, {'cpu_devices': 8}),
  'two slices, data and fsdp': (1, 2, {'cpu_devices': 8, 'slices': 2, 'data': 2, 'fsdp': 2}),
  'two processes, data and fsdp': (2, 1, {'cpu_devices': 2, 'data': 2, 'fsdp': 2}),
}
STEPS = 20


def run(folder, sections, processes=1, **mesh):
  folder.mkdir()
  (folder / 'config.json').write_text(json.dumps(micro.config(**sections, mesh=mesh)))
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    port = s.getsockname()[1]
  children = []
  for i in range(processes):
    (folder / str(i)).mkdir()
    join = [f'127.0.0.1:{port}', str(processes), str(i)] if processes > 1 else []
    children.append(subprocess.Popen(
      [sys.executable, 'tests/support/topology.py', f'{folder}/{i}', f'{folder}/config.json',
       f'{folder}/run', *join],
      cwd=ROOT, stderr=subprocess.PIPE, text=True,
    ))  # fmt: skip
  for child in children:
    _, lines = child.communicate(timeout=900)
    assert child.returncode == 0, lines
  return folder


def sections(start, accumulation=1):
  """Yields ('teacher', its sections), then ('students', sections that begin from `start`).

  The students begin from a trained teacher, so that target and student differ by more than
  rounding.
  """
  training = {'steps': STEPS, 'batch_size': 16, 'accumulation': accumulation}
  shared = {
    'model': {'channels': 8, 'emb_channels': 16},
    'train': {'log_every': 1, 'checkpoint_every': 10},
    'evaluation': {'num_steps': (2,)},
    'teacher': training,
    'guidance': {**training, 'one_batch': accumulation > 1},
    'progressive': {**training, 'last_steps': STEPS, 'start_steps': 4, 'end_steps': 2},
  }
  yield 'teacher', {**shared, 'stages': ('teacher',)}
  initial = str(start / 'run' / '00_teacher')
  yield 'students', {**shared, 'stages': ('guidance', 'progressive'), 'initial': initial}


@pytest.fixture(scope='module')
def start(tmp_path_factory):
  training = {'steps': 400, 'batch_size': 16, 'lr': 5e-3}
  given = {'model': {'channels': 8, 'emb_channels': 16}, 'stages': ('teacher',)}
  return run(tmp_path_factory.mktemp('start') / 'a', {**given, 'teacher': training})


@pytest.fixture(scope='module')
def alone(start, tmp_path_factory):
  top = tmp_path_factory.mktemp('alone')
  return {name: run(top / name, given) for name, given in sections(start)}


def flat(tree, prefix=''):
  out = {}
  for key, value in tree.items():
    one = flat(value, f'{prefix}{key}/') if isinstance(value, dict) else {prefix + key: value}
    out |= {k: np.asarray(v, np.float64) for k, v in one.items()}
  return out


def losses(folder):
  return np.array(
    [json.loads(a)['loss'] for a in (folder / 'metrics.jsonl').read_text().splitlines()]
  )


@pytest.mark.parametrize('name', MESHES)
def test_every_mesh_trains_as_one_device_does(start, alone, tmp_path, name):
  processes, accumulation, mesh = MESHES[name]
  for part, given in sections(start, accumulation):
    many = run(tmp_path / part, given, processes, **mesh)
    for i in range(processes):
      np.testing.assert_array_equal(
        np.load(many / str(i) / 'noise.npy'), np.load(alone[part] / '0' / 'noise.npy')
      )
    for folder in sorted((alone[part] / 'run').glob('0*')):
      a, b = many / 'run' / folder.name, folder
      found, expected = losses(a), losses(b)
      assert len(expected) == STEPS
      np.testing.assert_allclose(found, expected, rtol=1e-5)
      found, expected = flat(finished_rounds.read_params(a)), flat(finished_rounds.read_params(b))
      for leaf, value in expected.items():
        difference = np.linalg.norm(found[leaf] - value) / max(np.linalg.norm(value), 1e-12)
        assert difference <= 1e-4, (folder.name, leaf, difference)


# Restores the state of step `last` on `count` devices and saves it as the next step; prints the
# digest of the saved state. With last = -1 the first state is saved.
RESTORE = """
import sys
import jax
jax.config.update('jax_num_cpu_devices', int(sys.argv[2]))
import micro
from gdistill.devices import mesh as meshes, sharding
from gdistill.rounds import network as networks
from gdistill.training import shapes, step as train_step
from gdistill.workdir import checkpoints, step_checkpoints, storage

folder, count, fsdp, last = sys.argv[1], *map(int, sys.argv[2:5])
# emb_channels, so that some leaves are large enough to be split.
recipe = micro.recipe(model={'channels': 8, 'groups': 2, 'emb_channels': 512})
net = networks.build(recipe.model, True)
create = shapes.state_maker(recipe.teacher)
fresh = create(networks.initial_params(net, recipe.model, jax.random.key(0)))
fresh = jax.tree.map(lambda a: a + 1, fresh)
mesh = meshes.make_mesh(-1, fsdp)
shardings = train_step.state_shardings(mesh, fresh)
if last < 0:
  placed = sharding.put_like(shardings, fresh)
  step_checkpoints.save_step(folder, 0, placed)
else:
  like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), fresh)
  step, placed, _ = step_checkpoints.restore_latest(folder, like, shardings)
  assert step == last
  step_checkpoints.save_step(folder, step + 1, placed)
spread = [a for a in jax.tree.leaves(placed) if not a.is_fully_replicated]
assert (count > 1) == bool(spread)
assert jax.tree.map(lambda a: a.sharding.spec, placed) == jax.tree.map(lambda s: s.spec, shardings)
print(checkpoints.tree_digest(checkpoints.manifest(storage.path(folder) / str(last + 1))))
"""


def test_a_state_is_restored_to_the_bit_on_8_4_1_and_8_devices(tmp_path):
  digests = []
  for last, (count, fsdp) in enumerate([(8, 1), (4, 2), (1, 1), (8, 8)], -1):
    done = subprocess.run(
      [sys.executable, '-c', RESTORE, str(tmp_path / 'steps'), str(count), str(fsdp), str(last)],
      cwd=ROOT, capture_output=True, text=True, check=False,
      env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT / 'tests' / 'support')},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    digests.append(done.stdout.split()[-1])
  assert len(set(digests)) == 1 and len(digests) == 4
