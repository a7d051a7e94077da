"""The finished run that the tests of training share."""

import ladder
import latent_runs
import pytest


@pytest.fixture(scope='session')
def undisturbed(tmp_path_factory):
  """Returns the workdir of a finished micro run; a test that changes files works on a copy."""
  workdir = tmp_path_factory.mktemp('undisturbed') / 'run'
  ladder.run(workdir)
  return workdir


@pytest.fixture(scope='session')
def latent_inputs(tmp_path_factory):
  """Returns a folder with the pictures and frozen networks of runs in latent space."""
  return latent_runs.inputs(tmp_path_factory.mktemp('latent_inputs'))
