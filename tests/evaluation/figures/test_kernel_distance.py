"""Tests of the kernel distance against written-out sums, and against its expectation."""

import itertools

import numpy as np
import pytest

from gdistill.evaluation.figures import kernel_distance


def test_it_is_the_three_means_of_the_kernel():
  a, b = (
    np.array([[1.0, 2.0], [0.0, -1.0], [3.0, 1.0]]),
    np.array([[0.5, 0.0], [1.0, 1.0], [2.0, 2.0]]),
  )

  def k(x, y):
    return (x @ y / 2 + 1) ** 3

  within = sum(k(*p) for s in (a, b) for p in itertools.permutations(s, 2)) / 6
  across = sum(k(x, y) for x in a for y in b) / 9
  mean, std = kernel_distance.distance(a, b, subsets=3, size=3)
  assert mean == pytest.approx(within - 2 * across, rel=1e-12) and std < 1e-12


def test_of_one_distribution_it_is_nothing_and_of_two_it_is_their_gap():
  """Compares with E (g + 1)^3, g = x.y / d, for normal variables shifted by s, by algebra."""
  rng = np.random.default_rng(0)
  d, n, shift = 8, 4000, 0.5
  a, b, c = (rng.normal(size=(n, d)) for _ in range(3))
  mean, std = kernel_distance.distance(a, b, subsets=20, size=1000)
  assert abs(mean) < 3 * std / np.sqrt(20) + 1e-2
  # g = x.y / d. If both are centred, E (g + 1)^3 = 1 + 3 E g^2 = 1 + 3 / d. If one or both are
  # shifted by s, E g = 0 or s^2; E g^2 and E g^3 follow from independent coordinates with mean s
  # and variance 1.
  own, m = 1 + 3 / d, shift**2
  square = ((1 + m) ** 2 - m**2) / d + m**2
  third = shift * (3 + m)  # E x^3
  cube = (third**2 + 3 * (d - 1) * (1 + m) ** 2 * m + (d - 1) * (d - 2) * m**3) / d**2
  both = 1 + 3 * m + 3 * square + cube
  mixed = 1 + 3 * (1 + m) / d
  found, _ = kernel_distance.distance(a, c + shift, subsets=50, size=1000)
  assert found == pytest.approx(own + both - 2 * mixed, rel=0.1)


@pytest.mark.parametrize(('size', 'subsets'), [(1, 1), (11, 1), (5, 0)])
def test_wrong_sizes_are_named(size, subsets):
  with pytest.raises(ValueError, match=r'size|subsets'):
    kernel_distance.distance(np.ones((10, 2)), np.ones((10, 2)), subsets, size)
