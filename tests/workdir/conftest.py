"""The fixture that records error lines of the log."""

import pytest
from absl import logging


@pytest.fixture
def logged(monkeypatch):
  """Returns the list of the error lines that are logged during the test."""
  lines = []
  monkeypatch.setattr(logging, 'error', lambda text, *args: lines.append(text % args))
  return lines
