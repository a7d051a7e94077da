"""A finished run that was not disturbed, with which disturbed runs are compared."""

import disturbed
import pytest


@pytest.fixture(scope='session')
def undisturbed(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('undisturbed') / 'run'
  done = disturbed.run(workdir)
  assert done.returncode == 0, done.stderr
  return workdir
