"""The pictures and small networks that the tests of frozen networks share."""

import latent_runs
import pytest


@pytest.fixture(scope='session')
def given(tmp_path_factory):
  """Returns a folder with pictures, captions, a text encoder and three autoencoders."""
  return latent_runs.inputs(tmp_path_factory.mktemp('given'))
