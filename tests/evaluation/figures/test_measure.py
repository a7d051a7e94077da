"""Tests of measurements: they add up, whichever host measured which pictures."""

import functools

import measured
import numpy as np
import pytest
import scipy.linalg
import stand_in

from gdistill.evaluation.figures import inception_score
from gdistill.evaluation.figures import measure
from gdistill.evaluation.figures import statistics

TOTAL, BANK = measured.TOTAL, measured.BANK


@pytest.mark.parametrize('hosts', [1, 2, 8])
def test_any_split_over_hosts_gives_the_same_figures(found, target, hosts):
  labels = np.arange(TOTAL) % 3
  expected = measured.figures(measured.of(found, np.arange(TOTAL), labels), target)
  batches = [np.arange(i, min(i + 50, TOTAL)) for i in range(0, TOTAL, 50)]
  # Batch k belongs to host k mod hosts, and the hosts are merged last.
  shares = [
    functools.reduce(measure.Measured.merge, [measured.of(found, b, labels) for b in share])
    for share in (batches[h::hosts] for h in range(hosts))
  ]
  merged = functools.reduce(measure.Measured.merge, shares[::-1])
  again = measured.figures(merged, target)
  assert set(again) == {
    'fd', 'sfid', 'inception_score', 'inception_score_std', 'accuracy', 'kid', 'kid_std',
    'precision', 'recall',
  }  # fmt: skip
  for name, value in expected.items():
    assert again[name] == pytest.approx(value, abs=1e-9, rel=1e-9), name


def test_figures_are_those_of_the_features(found, target):
  labels = np.arange(TOTAL) % 3
  got = measured.figures(measured.of(found, np.arange(TOTAL), labels), target)
  a = np.float64(found['f'])
  moments = target.measured.features
  root = scipy.linalg.sqrtm(np.cov(a, rowvar=False) @ moments.cov).real
  b = np.sum((a.mean(0) - moments.mean) ** 2)
  expected = b + np.trace(np.cov(a, rowvar=False) + moments.cov - 2 * root)
  assert got['fd'] == pytest.approx(expected, rel=1e-7)
  assert got['accuracy'] == pytest.approx(np.mean(found['l'].argmax(1) == labels))
  shuffled = found['l'][np.random.RandomState(2020).permutation(TOTAL)]  # as torch-fidelity
  mean, spread = inception_score.score(shuffled, splits=10)
  assert got['inception_score'] == pytest.approx(mean, rel=1e-12)
  assert got['inception_score_std'] == pytest.approx(spread, rel=1e-9)
  spatial = statistics.Moments.of(found['s'])
  expected = statistics.frechet_distance(spatial, target.measured.spatial)
  assert got['sfid'] == pytest.approx(expected, rel=1e-9)


def test_the_bank_holds_pictures_drawn_once_in_their_order(found):
  parts = [measured.of(found, np.arange(i, TOTAL, 3)) for i in (2, 0, 1)]
  merged = functools.reduce(measure.Measured.merge, parts)
  drawn = np.sort(np.random.RandomState(2020).permutation(TOTAL)[:BANK])
  np.testing.assert_array_equal(merged.ordered_bank, found['f'][drawn])


@pytest.mark.parametrize('size', [7, 700, 5000])
def test_batches_of_any_size_run_up_to_the_whole(found, target, size, monkeypatch):
  monkeypatch.setattr(measure, '_ROWS', 500)  # small enough for several merges in this test
  labels = np.arange(TOTAL) % 3
  running = measure.Running(stand_in.extractor(spatial='s'), TOTAL, BANK)
  assert running.measured() is None
  for first in range(0, TOTAL, size):
    index = np.arange(first, min(first + size, TOTAL))
    running.add({name: value[index] for name, value in found.items()}, index, labels[index])
  expected = measured.figures(measured.of(found, np.arange(TOTAL), labels), target)
  again = measured.figures(running.measured(), target)
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
