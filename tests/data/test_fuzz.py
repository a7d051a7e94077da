"""Damaged files: only our own errors, in bounded time and memory; never other pictures."""

import resource
import shutil
import time

import labelled
import numpy as np
import pytest

from gdistill import errors
from gdistill.data import folder
from gdistill.data import pictures
from gdistill.data import records

CASES = [pytest.param(60, id='60'), pytest.param(500, marks=pytest.mark.heavy, id='500')]


def damaged(data: bytes, case: int) -> bytes:
  """One of several kinds of damage, the same for the same case."""
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
      out[at : at + 4] = b'\xff' * len(out[at : at + 4])  # lengths and counts
    case 7:
      cut = sorted(rng.integers(len(out), size=2))
      out = out[: cut[0]] + out[cut[1] :] + out[cut[0] : cut[1]]
  return bytes(out)


def fuzz(data, cases, read, seconds=2.0, mebibytes=400):
  """Calls read(damaged) for every case; returns how many were refused."""
  refused, before = 0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  for case in range(cases):
    began = time.process_time()
    try:
      read(damaged(data, case))
    except errors.DataError as e:
      assert '\n' not in str(e) and len(str(e)) < 800
      refused += 1
    assert time.process_time() - began < seconds, case
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < mebibytes * 1024
  return refused


@pytest.mark.parametrize('cases', CASES)
@pytest.mark.parametrize('kind', ['PNG', 'JPEG', 'WEBP'])
def test_damaged_pictures(kind, cases):
  smooth = np.kron(labelled.pixels_of('train', 0, 0), np.ones((8, 8, 1), np.uint8))
  data = labelled.encode(smooth, kind)

  def read(bad):
    pixels = pictures.decode(bad, 'x')
    assert pictures.square(pixels, 8).shape == (8, 8, 3)
    if kind == 'PNG':  # the only one with checksums
      np.testing.assert_array_equal(pixels, smooth)

  assert fuzz(data, cases, read) > cases // 4


@pytest.mark.parametrize('cases', CASES)
@pytest.mark.parametrize('kind', ['tar', 'tar.xz', 'zip'])
def test_damaged_archives(kind, cases, archives, tmp_path):
  path = tmp_path / f'set.{kind}'
  wanted = labelled.settings('folder', path)

  def read(bad):
    path.write_bytes(bad)
    for data, split in zip(folder.load(wanted, labelled.SHAPE), labelled.COUNTS, strict=True):
      found = list(map(data.__getitem__, range(len(data))))
      if kind != 'zip':  # which has no checksum over names: classes may change
        assert len(found) == sum(labelled.COUNTS[split])

  assert fuzz(archives[kind].read_bytes(), cases, read) > cases // 4


@pytest.mark.parametrize('cases', CASES)
@pytest.mark.parametrize('name', ['00001.array_record', 'index.json', 'labels.int32'])
def test_damaged_records(name, cases, records_path, tmp_path):
  copy = shutil.copytree(records_path, tmp_path / 'copy')
  whole = [(p.tobytes(), label) for _, p, label in labelled.examples('train')]
  wanted = labelled.settings('records', copy, held_out=0.2)

  def read(bad):
    if name.endswith('array_record'):  # of the right length, which is looked at first
      bad = bad[:length].ljust(length, b'\0')
    (copy / 'train' / name).write_bytes(bad)
    train, held = records.load(wanted, labelled.SHAPE)
    found = [
      (p.tobytes(), label)
      for data in (train, held)
      for p, label in map(data.__getitem__, range(len(data)))
    ]
    assert sorted(found) == sorted(whole)

  data = (records_path / 'train' / name).read_bytes()
  length = len(data)
  # a shard of six small pictures is nearly all padding
  assert fuzz(data, cases, read) >= (cases // 20 if name.endswith('array_record') else cases // 2)
