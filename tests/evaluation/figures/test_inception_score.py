"""Tests of the inception score on logits whose score is known."""

import numpy as np
import pytest

from gdistill import errors
from gdistill.evaluation.figures import inception_score


def test_sure_and_even_gives_the_number_of_classes():
  logits = 1e4 * np.eye(7)[np.arange(70) % 7]
  mean, spread = inception_score.score(logits.astype(np.float32))
  assert mean == pytest.approx(7) and spread == 0


def test_the_same_opinion_of_everything_gives_one():
  assert inception_score.score(np.tile([1.0, -2, 3], (20, 1)))[0] == pytest.approx(1)


def test_two_classes_of_ten_give_two():
  logits = 1e4 * np.eye(10)[np.arange(40) % 2 * 5]
  assert inception_score.score(logits)[0] == pytest.approx(2)


def test_it_is_the_exponential_of_the_mutual_information():
  p = np.random.default_rng(0).dirichlet(np.ones(5), 30)
  entropy = lambda q: -np.sum(q * np.log(q), axis=-1)
  # The mean KL is the mutual information, I(x; y) = H(y) - H(y | x).
  expected = np.exp(entropy(p.mean(0)) - entropy(p).mean())
  # Adding a constant to the logits of a picture does not change p(y|x).
  logits = np.log(p) + np.random.default_rng(1).normal(size=(30, 1))
  assert inception_score.score(logits)[0] == pytest.approx(expected)


def test_each_split_is_scored_alone():
  # The first half of the pictures shows one class, the second half four.
  logits = 1e4 * np.eye(4)[[0] * 8 + [0, 1, 2, 3] * 2]
  mean, spread = inception_score.score(logits, splits=2)
  assert mean == pytest.approx((1 + 4) / 2) and spread == pytest.approx(1.5)


@pytest.mark.parametrize('splits', [0, 6])
def test_splits_must_fit(splits):
  with pytest.raises(ValueError, match='number of images, 5'):
    inception_score.score(np.zeros((5, 3)), splits)


def test_logits_are_a_table():
  with pytest.raises(ValueError, match=r'\[n, classes\]'):
    inception_score.score(np.zeros(5))


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_logits_that_are_not_finite_give_no_score(bad):
  with pytest.raises(errors.NumericsError, match='logits are not all finite'):
    inception_score.score(np.array([[0.0, 1.0], [bad, 0.0]]))
