"""A finished run that was not disturbed, with which disturbed runs are compared."""

import shutil

import micro
import pytest

from gdistill.evaluation.grid import run as grid_run
from gdistill.training import assemble


@pytest.fixture(scope='session')
def undisturbed(micro_run, tmp_path_factory):
  workdir = shutil.copytree(micro_run, tmp_path_factory.mktemp('undisturbed') / 'run')
  grid_run.write(assemble.of_workdir(workdir), micro.evaluate(workdir))
  return workdir
