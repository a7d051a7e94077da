"""Damaged files raise DataError in bounded time and memory, or give the right pictures."""

import shutil

import damage
import labelled
import numpy as np
import pytest

from gdistill.data import folder
from gdistill.data import pictures
from gdistill.data import records


@pytest.mark.parametrize('cases', damage.CASES)
@pytest.mark.parametrize('kind', ['PNG', 'JPEG', 'WEBP'])
def test_damaged_pictures(kind, cases):
  smooth = np.kron(labelled.pixels_of('train', 0, 0), np.ones((8, 8, 1), np.uint8))
  data = labelled.encode(smooth, kind)

  def read(bad):
    pixels = pictures.decode(bad, 'x')
    assert pictures.square(pixels, 8).shape == (8, 8, 3)
    if kind == 'PNG':  # the only format with checksums
      np.testing.assert_array_equal(pixels, smooth)

  assert damage.fuzz(data, cases, read) > cases // 4


@pytest.mark.parametrize('cases', damage.CASES)
@pytest.mark.parametrize('kind', ['tar', 'tar.xz', 'zip'])
def test_damaged_archives(kind, cases, archives, tmp_path):
  path = tmp_path / f'set.{kind}'
  wanted = labelled.settings('folder', path)

  def read(bad):
    path.write_bytes(bad)
    for data, split in zip(folder.load(wanted, labelled.SHAPE), labelled.COUNTS, strict=True):
      found = list(map(data.__getitem__, range(len(data))))
      if kind != 'zip':  # zip has no checksum over names, so that classes may change
        assert len(found) == sum(labelled.COUNTS[split])

  assert damage.fuzz(archives[kind].read_bytes(), cases, read) > cases // 4


@pytest.mark.parametrize('cases', damage.CASES)
@pytest.mark.parametrize('name', ['00001.array_record', 'index.json', 'labels.int32'])
def test_damaged_records(name, cases, records_path, tmp_path):
  copy = shutil.copytree(records_path, tmp_path / 'copy')
  whole = [(p.tobytes(), label) for _, p, label in labelled.examples('train')]
  wanted = labelled.settings('records', copy, held_out=0.2)

  def read(bad):
    if name.endswith('array_record'):  # keep the length, or only its check is tested
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
  # A shard of six small pictures is nearly all padding, where damage does no harm.
  assert damage.fuzz(data, cases, read) >= (
    cases // 20 if name.endswith('array_record') else cases // 2
  )
