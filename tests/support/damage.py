"""Damages bytes in many ways, and checks that a reader refuses them in little time and memory."""

import pathlib
import time

import numpy as np
import pytest

from gdistill import errors

CASES = [pytest.param(60, id='60'), pytest.param(500, marks=pytest.mark.full, id='500')]


def damaged(data: bytes, case: int) -> bytes:
  """Returns the data with one kind of damage, which depends on `case` alone."""
  rng = np.random.default_rng(case)
  out, at = bytearray(data), int(rng.integers(len(data)))
  match case % 8:
    case 0:
      out[at] ^= 1 << int(rng.integers(8))
    case 1:
      del out[at:]
    case 2:
      del out[at : at + int(rng.integers(1, 500))]
    case 3:
      out[at:at] = rng.bytes(int(rng.integers(1, 500)))
    case 4:
      for k in rng.integers(len(out), size=20):
        out[k] = int(rng.integers(256))
    case 5:
      out[at : at + 300] = bytes(len(out[at : at + 300]))
    case 6:
      out[at : at + 4] = b'\xff' * len(out[at : at + 4])  # makes lengths and counts huge
    case 7:
      cut = sorted(rng.integers(len(out), size=2))
      out = out[: cut[0]] + out[cut[1] :] + out[cut[0] : cut[1]]
  return bytes(out)


def fuzz(data, cases, read, seconds=2.0, mebibytes=400):
  """Calls read(damaged data) for every case; returns the number of cases with a gdistill error.

  Fails if an error is longer than one line, or if reading takes too much time or memory.
  """
  refused, before = 0, _peak(forget=True)
  for case in range(cases):
    began = time.process_time()
    try:
      read(damaged(data, case))
    except errors.GdistillError as e:
      assert '\n' not in str(e) and len(str(e)) < 800
      refused += 1
    assert time.process_time() - began < seconds, case
  assert _peak() - before < mebibytes * 1024
  return refused


def _peak(forget=False):
  """Returns the peak memory of this process in kB since the last call with forget=True."""
  if forget:
    pathlib.Path('/proc/self/clear_refs').write_text('5')
  words = pathlib.Path('/proc/self/status').read_text().split()
  return int(words[words.index('VmHWM:') + 1])
