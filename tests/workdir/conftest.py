"""Fixtures of the tests of checkpoints."""

import pytest
from absl import logging


@pytest.fixture
def logged(monkeypatch):
  lines = []
  monkeypatch.setattr(logging, 'error', lambda text, *args: lines.append(text % args))
  return lines
