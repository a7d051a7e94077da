"""Tests that checkpoints and exports of every released format are still read bit for bit."""

import pathlib
import shutil

import jax
import make
import numpy as np
import pytest

from gdistill.drawing import sampling
from gdistill.published import importing
from gdistill.rounds import folder as folders
from gdistill.workdir import checkpoints
from gdistill.workdir import state as states
from gdistill.workdir import step_checkpoints
from gdistill.workdir import storage

FORMATS = sorted(pathlib.Path(__file__).parent.glob('format*'))


def test_the_format_of_this_version_is_among_them():
  assert f'format{checkpoints.FORMAT_VERSION}' in [f.name for f in FORMATS]


def holds(tree):
  """Checks that every leaf holds the numbers of the formula in make.py, in its saved dtype."""
  for name, leaf in zip(states.names(tree), jax.tree.leaves(tree), strict=True):
    wanted = make.numbers(name, leaf.shape).astype(leaf.dtype)
    np.testing.assert_array_equal(np.asarray(leaf), wanted, err_msg=name)


@pytest.mark.parametrize('folder', FORMATS, ids=lambda f: f.name)
def test_a_step(folder, tmp_path):
  steps = shutil.copytree(folder / 'steps', tmp_path / 'steps')
  step, tree, meta = step_checkpoints.restore_latest(steps, make.state())
  assert step == 7 and meta == {'step': 7} and len(jax.tree.leaves(tree)) > 100
  holds(tree)


@pytest.mark.parametrize('folder', FORMATS, ids=lambda f: f.name)
def test_a_finished_round(folder):
  found = folders.read_folder(folder / 'round')
  holds({'params': found.params})  # the formula uses the names that leaves have in a step
  assert found.card['num_steps'] == 1 and found.takes_w
  sampling.check_steps(folder, found.card, 1, 'ddim')


@pytest.mark.parametrize('folder', FORMATS, ids=lambda f: f.name)
def test_an_export(folder, tmp_path):
  importing.run(str(folder / 'export'), storage.path(tmp_path / 'round'))
  found = folders.read_folder(tmp_path / 'round')
  assert found.card['num_steps'] == 1 and found.takes_w
  holds({'params': found.params})  # the formula uses the names that leaves have in a step
