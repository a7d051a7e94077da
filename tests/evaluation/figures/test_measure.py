"""Tests of measurements: they add up, whichever host measured which pictures."""

import functools

import numpy as np
import pytest
import scipy.linalg
import stand_in

from gdistill.evaluation import reference
from gdistill.evaluation.features import extractors
from gdistill.evaluation.figures import inception_score
from gdistill.evaluation.figures import measure
from gdistill.evaluation.figures import statistics

TOTAL, BANK = 1003, 600


@pytest.fixture(scope='module')
def found():
  return extractors.extract(stand_in.extractor(spatial='s'), stand_in.pictures(TOTAL))


def of(found, index, labels=None):
  index = np.asarray(index)
  part = {name: value[index] for name, value in found.items()}
  labels = None if labels is None else labels[index]
  return measure.Measured.of(stand_in.extractor(spatial='s'), part, index, TOTAL, BANK, labels)


def figures(measured, target):
  return measure.figures(measured, target.measured, target.support)


@pytest.fixture(scope='module')
def target():
  extractor = stand_in.extractor(spatial='s')
  found = extractors.extract(extractor, stand_in.pictures(900, seed=1))
  whole = measure.Measured.of(extractor, found, np.arange(900), 900, 900)
  about = reference.describe(extractor, 'noise', 'all', 900, 'd', 900, (8, 8, 3))
  return reference.Reference(whole, about)


@pytest.mark.parametrize('hosts', [1, 2, 8])
def test_any_split_over_hosts_gives_the_same_figures(found, target, hosts):
  labels = np.arange(TOTAL) % 3
  expected = figures(of(found, np.arange(TOTAL), labels), target)
  batches = [np.arange(i, min(i + 50, TOTAL)) for i in range(0, TOTAL, 50)]
  # Batch k belongs to host k mod hosts, and the hosts are merged last.
  shares = [
    functools.reduce(measure.Measured.merge, (of(found, b, labels) for b in batches[h::hosts]))
    for h in range(hosts)
  ]
  merged = functools.reduce(measure.Measured.merge, shares[::-1])
  again = figures(merged, target)
  assert set(again) == {
    'fd', 'sfid', 'inception_score', 'inception_score_std', 'accuracy', 'kid', 'kid_std',
    'precision', 'recall',
  }  # fmt: skip
  for name, value in expected.items():
    assert again[name] == pytest.approx(value, abs=1e-9, rel=1e-9), name


def test_figures_are_those_of_the_features(found, target):
  labels = np.arange(TOTAL) % 3
  got = figures(of(found, np.arange(TOTAL), labels), target)
  a, b = np.float64(found['f']), None
  moments = target.measured.features
  root = scipy.linalg.sqrtm(np.cov(a, rowvar=False) @ moments.cov).real
  b = np.sum((a.mean(0) - moments.mean) ** 2)
  expected = b + np.trace(np.cov(a, rowvar=False) + moments.cov - 2 * root)
  assert got['fd'] == pytest.approx(expected, rel=1e-7)
  assert got['accuracy'] == pytest.approx(np.mean(found['l'].argmax(1) == labels))
  shuffled = found['l'][np.random.RandomState(2020).permutation(TOTAL)]  # torch-fidelity's order
  mean, spread = inception_score.score(shuffled, splits=10)
  assert got['inception_score'] == pytest.approx(mean, rel=1e-12)
  assert got['inception_score_std'] == pytest.approx(spread, rel=1e-9)
  spatial = statistics.Moments.of(found['s'])
  expected = statistics.frechet_distance(spatial, target.measured.spatial)
  assert got['sfid'] == pytest.approx(expected, rel=1e-9)


def test_the_bank_holds_pictures_drawn_once_in_their_order(found):
  parts = [of(found, np.arange(i, TOTAL, 3)) for i in (2, 0, 1)]
  merged = functools.reduce(measure.Measured.merge, parts)
  drawn = np.sort(np.random.RandomState(2020).permutation(TOTAL)[:BANK])
  np.testing.assert_array_equal(merged.ordered_bank, found['f'][drawn])


def test_a_file_of_reference_statistics_holds_all_of_it(found, target, tmp_path):
  extractor = stand_in.extractor(spatial='s')
  (tmp_path / 'r.npz').write_bytes(target.to_bytes())
  back = reference.read(tmp_path / 'r.npz', extractor)
  assert back.protocol == target.protocol
  whole = of(found, np.arange(TOTAL))
  assert figures(whole, back) == figures(whole, target)


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


@pytest.mark.parametrize('size', [7, 700, 5000])
def test_batches_of_any_size_run_up_to_the_whole(found, target, size, monkeypatch):
  monkeypatch.setattr(measure, '_ROWS', 500)  # small enough for several merges in this test
  labels = np.arange(TOTAL) % 3
  running = measure.Running(stand_in.extractor(spatial='s'), TOTAL, BANK)
  assert running.measured() is None
  for first in range(0, TOTAL, size):
    index = np.arange(first, min(first + size, TOTAL))
    running.add({name: value[index] for name, value in found.items()}, index, labels[index])
  expected = figures(of(found, np.arange(TOTAL), labels), target)
  again = figures(running.measured(), target)
  assert again == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_pictures_sorted_by_class_score_as_mixed_ones_do():
  """Each split and the bank hold all classes, even if the pictures are sorted by class."""
  extractor = stand_in.extractor()
  count, classes = 3000, 3
  logits = 50.0 * np.eye(classes)[np.arange(count) * classes // count]
  found = {'f': logits + np.random.default_rng(0).normal(size=logits.shape), 'l': logits}
  got = measure.Measured.of(extractor, found, np.arange(count), count, 300)
  score, _ = got.score.score()
  assert score > 0.98 * classes  # every picture has a certain class, and classes are balanced
  shares = np.bincount(got.bank_index * classes // count)
  assert (abs(shares - 100) < 25).all()
