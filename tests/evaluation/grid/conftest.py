"""The trained run that the tests of the grid share."""

import pathlib
import shutil

import micro
import pytest


@pytest.fixture(scope='session')
def trained(tmp_path_factory):
  """Returns the workdir of a finished micro run that is not evaluated; tests must not change it."""
  folder = tmp_path_factory.mktemp('grids') / 'run'
  micro.train(micro.recipe(evaluation={'batch_size': 8}), folder)
  return folder


@pytest.fixture
def workdir(trained, tmp_path):
  """Returns a copy of the trained run, for one test alone."""
  return pathlib.Path(shutil.copytree(trained, tmp_path / 'run'))
