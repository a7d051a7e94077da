"""Measured pictures that the tests of figures and of references share."""

import measured
import pytest


@pytest.fixture(scope='session')
def found():
  """Returns the features of the drawn pictures."""
  return measured.features()


@pytest.fixture(scope='session')
def target():
  """Returns the reference that the drawn pictures are compared with."""
  return measured.target()
