"""The finished run that the tests of training share."""

import latent_runs
import pytest


@pytest.fixture(scope='session')
def undisturbed(micro_run):
  return micro_run


@pytest.fixture(scope='session')
def latent_inputs(tmp_path_factory):
  """Returns a folder with the pictures and frozen networks of runs in latent space."""
  return latent_runs.inputs(tmp_path_factory.mktemp('latent_inputs'))
