"""Tests of reference statistics in a file: read back whole, and refused where they do not fit."""

import dataclasses

import measured
import numpy as np
import pytest
import stand_in

from gdistill.evaluation import reference


def test_a_file_of_reference_statistics_holds_all_of_it(found, target, tmp_path):
  extractor = stand_in.extractor(spatial='s')
  (tmp_path / 'r.npz').write_bytes(target.to_bytes())
  back = reference.read(tmp_path / 'r.npz', extractor)
  assert back.protocol == target.protocol
  whole = measured.of(found, np.arange(measured.TOTAL))
  assert measured.figures(whole, back) == measured.figures(whole, target)


@pytest.mark.parametrize(
  ('change', 'error'),
  [
    (dict(digest='another'), 'was made by stand_in 0123456789abcdef'),
    (dict(name='inception'), 'was made by stand_in'),
    (dict(protocol={'resize': 'to 299', 'normalisation': 'x / 255'}), "measured by .* 'to 299'"),
  ],
)
def test_statistics_of_another_extractor_are_refused(target, tmp_path, change, error):
  (tmp_path / 'r.npz').write_bytes(target.to_bytes())
  with pytest.raises(Exception, match=error) as told:
    reference.read(tmp_path / 'r.npz', stand_in.extractor(**change))
  assert told.value.exit_code == 2


@pytest.mark.parametrize('damage', [lambda d: d[: len(d) // 2], lambda d: b'', lambda d: b'[]'])
def test_a_damaged_file_of_statistics_is_named(target, tmp_path, damage):
  (tmp_path / 'r.npz').write_bytes(damage(target.to_bytes()))
  with pytest.raises(
    Exception, match=r'r\.npz is not a readable file.*gdistill statistics'
  ) as told:
    reference.read(tmp_path / 'r.npz', stand_in.extractor())
  assert told.value.exit_code == 4


def test_statistics_of_earlier_versions_are_told_from_upright_ones(target, tmp_path):
  old = dataclasses.replace(target, upright=False)  # such files do not have the mark
  for name, made in (('new', target), ('old', old)):
    (tmp_path / name).write_bytes(made.to_bytes())
    back = reference.read(tmp_path / name, stand_in.extractor(spatial='s'))
    assert back.upright == (name == 'new') and back.protocol == target.protocol
