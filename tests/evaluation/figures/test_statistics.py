"""Tests of moments, which add up, and of the Fréchet distance against closed forms."""

import numpy as np
import pytest
import scipy.linalg

from gdistill import errors
from gdistill.evaluation.figures import statistics


def moments(mean, cov):
  """Returns the moments of a set whose mean and covariance alone are known."""
  return statistics.Moments.given(mean, cov)


def random_cov(rng, d, rank):
  root = rng.normal(size=(rank, d))
  return root.T @ root


def test_moments_are_the_mean_and_the_unbiased_covariance():
  x = np.random.default_rng(0).normal(size=(50, 4)) + 100
  m = statistics.Moments.of(x.astype(np.float32))
  np.testing.assert_allclose(m.mean, x.mean(0), rtol=1e-6)
  np.testing.assert_allclose(m.cov, np.cov(x, rowvar=False), rtol=1e-4, atol=1e-5)
  assert m.count == 50 and m.mean.dtype == m.cov.dtype == np.float64


@pytest.mark.parametrize('cuts', [[], [1], [37], [1, 2, 3], [10, 10, 90], [0, 100]])
def test_merging_any_split_gives_the_whole(cuts):
  x = np.random.default_rng(1).normal(size=(100, 5)) * [1, 2, 3, 4, 5] + 30
  parts = [statistics.Moments.of(p) for p in np.split(x, cuts)]
  merged, whole = parts[0], statistics.Moments.of(x)
  for part in parts[1:]:
    merged = merged.merge(part)
  assert merged.count == 100
  np.testing.assert_allclose(merged.mean, whole.mean, rtol=0, atol=1e-9)
  np.testing.assert_allclose(merged.cov, whole.cov, rtol=0, atol=1e-9)


def test_equality_is_of_every_number():
  x = np.random.default_rng(2).normal(size=(9, 3))
  m = statistics.Moments.of(x)
  assert m == statistics.Moments.of(x.copy())
  assert m != statistics.Moments(10, m.mean, m.scatter)
  assert m != statistics.Moments(9, m.mean + 1, m.scatter)
  assert m != statistics.Moments(9, m.mean, m.scatter + 1) and m != 'm'


def test_diagonal_gaussians_have_their_closed_form():
  # |m_a - m_b|^2 + sum (s_a - s_b)^2
  a, b = moments([0, 1, 2], np.diag([1.0, 4, 9])), moments([3, 1, 0], np.diag([16.0, 4, 1]))
  assert statistics.frechet_distance(a, b) == pytest.approx(9 + 4 + 9 + 0 + 4, abs=1e-10)


def test_sqrtm_says_the_same():
  rng = np.random.default_rng(3)
  for d in (2, 5, 40):
    sa, sb = random_cov(rng, d, 2 * d), random_cov(rng, d, 2 * d)
    ma, mb = rng.normal(size=(2, d))
    root = scipy.linalg.sqrtm(sa @ sb).real
    expected = np.sum((ma - mb) ** 2) + np.trace(sa + sb - 2 * root)
    found = statistics.frechet_distance(moments(ma, sa), moments(mb, sb))
    assert found == pytest.approx(expected, rel=1e-9)


def test_singular_covariances_keep_their_digits():
  rng = np.random.default_rng(4)
  basis, _ = np.linalg.qr(rng.normal(size=(30, 30)))
  # Both covariances have the same eigenvectors, so the closed form of diagonal covariances holds;
  # most variances are zero.
  va, vb = np.zeros(30), np.zeros(30)
  va[:4], vb[2:8] = [1, 4, 9, 16], [1, 4, 9, 1, 4, 9]
  a, b = (moments(np.zeros(30), basis * v @ basis.T) for v in (va, vb))
  expected = np.sum((np.sqrt(va) - np.sqrt(vb)) ** 2)
  # The tolerance covers eigenvalues of 1e-15 instead of 0, whose square roots are 3e-8.
  assert statistics.frechet_distance(a, b) == pytest.approx(expected, abs=1e-5)
  few = statistics.Moments.of(rng.normal(size=(5, 64)))  # fewer samples than features
  assert statistics.frechet_distance(few, few) == pytest.approx(0, abs=1e-10)


def optimal_pair(rng, d, n):
  """Returns (a, b, distance) of samples a and b = T a + shift, where this map is optimal.

  T is symmetric and positive, so the map is the gradient of a convex function, and hence optimal
  between the Gaussians for any covariance (Brenier): W2^2 = tr((I - T) S_a (I - T)) + |..|^2, with
  the difference of the means in |..|. T and S_a do not commute.
  """
  x = rng.normal(size=(n, d)) * rng.uniform(0.1, 2, d) + rng.normal(size=d)
  low = rng.normal(size=(d, 8)) / np.sqrt(d)
  step = low @ low.T - 0.3 * np.eye(d)  # T - I, eigenvalues above -0.3
  moved = x @ step + 0.1 * rng.normal(size=d)
  expected = np.sum(moved.mean(0) ** 2) + moved.var(0, ddof=1).sum()
  return x, x + moved, expected


@pytest.mark.parametrize('d', [8, 64, 256])
@pytest.mark.parametrize('share', [0.5, 4])
def test_gaussians_of_known_distance_are_at_it(d, share):
  rng = np.random.default_rng(d)
  a, b, expected = optimal_pair(rng, d, max(3, int(share * d)))
  found = statistics.frechet_distance(statistics.Moments.of(a), statistics.Moments.of(b))
  assert found == pytest.approx(expected, rel=1e-9)


def test_a_scaled_and_moved_copy_is_as_far_as_it_was_scaled_and_moved():
  x = np.random.default_rng(5).normal(size=(200, 6))
  a = statistics.Moments.of(x)
  b = statistics.Moments.of(3 * x + 2)  # S_b = 9 S_a commutes with S_a
  expected = np.sum((2 * a.mean + 2) ** 2) + 4 * np.trace(a.cov)
  assert statistics.frechet_distance(a, b) == pytest.approx(expected)
  assert statistics.frechet_distance(b, a) == pytest.approx(expected)


def test_the_distance_is_never_negative():
  rng = np.random.default_rng(6)
  for _ in range(20):
    m = statistics.Moments.of(1e3 * rng.normal(size=(70, 64)))
    assert 0 <= statistics.frechet_distance(m, m) < 1e-6


def test_what_cannot_be_compared_is_refused():
  two, three = np.zeros((5, 2)), np.zeros((5, 3))
  of = statistics.Moments.of
  with pytest.raises(ValueError, match='different sizes'):
    statistics.frechet_distance(of(two), of(three))
  with pytest.raises(ValueError, match='different sizes'):
    of(two).merge(of(three))
  with pytest.raises(ValueError, match='at least 2 samples'):
    statistics.frechet_distance(of(two), of(two[:1]))
  with pytest.raises(errors.NumericsError, match='not all finite'):
    of(np.array([[0.0, np.nan]]))
  with pytest.raises(ValueError, match=r'must be \[n, d\]'):
    of(np.zeros(3))


def test_rms_is_in_units_of_minus_one_to_one():
  black, white = np.zeros((3, 8, 8, 1), np.uint8), np.full((3, 8, 8, 1), 255, np.uint8)
  assert statistics.rms(black, white) == statistics.rms(white, black) == pytest.approx(2)
  one = black.copy()
  one[0, 0, 0] = 51  # 51 / 127.5 = 0.4 in one pixel of 192
  assert statistics.rms(black, one) == pytest.approx(0.4 / np.sqrt(192))


def test_rms_needs_pairs_of_pixels():
  a = np.zeros((3, 8, 8, 1), np.uint8)
  with pytest.raises(ValueError, match='must be equal; give two sets'):
    statistics.rms(a, a[:1])
  with pytest.raises(ValueError, match='give both as uint8 pixels'):
    statistics.rms(a, a.astype(np.float32))


def test_rms_of_latents_is_in_their_own_units():
  a = np.zeros((2, 4, 4, 2), np.float16)
  b = a.copy()
  b[1, 0, 0, 0] = 3.0  # a difference of 3 in one value of 64
  assert statistics.rms(a, b) == pytest.approx(3 / np.sqrt(64))
