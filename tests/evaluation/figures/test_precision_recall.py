"""Tests of precision, recall and nearest neighbours against loops over all pairs."""

import numpy as np
import pytest

from gdistill.evaluation.figures import precision_recall


def by_loops(points, centres, k):
  """Returns the fraction of points inside a centre's ball, whose radius reaches its k-th neighbour.

  Computed from the definition, with loops.
  """
  inside = 0
  for p in points:
    for i, c in enumerate(centres):
      others = sorted(np.linalg.norm(c - o) for j, o in enumerate(centres) if j != i)
      if np.linalg.norm(p - c) <= others[k - 1]:
        inside += 1
        break
  return inside / len(points)


def scores(real, fake):
  return precision_recall.precision_and_recall(
    *(precision_recall.Support.of(points) for points in (real, fake))
  )


@pytest.mark.parametrize('k', [1, 3])
@pytest.mark.parametrize('chunk', [5, 1000])
def test_loops_say_the_same(k, chunk):
  rng = np.random.default_rng(k)
  fake, real = rng.normal(size=(23, 4)) + 0.7, rng.normal(size=(31, 4))
  supports = [precision_recall.Support.of(points, k, chunk) for points in (real, fake)]
  precision, recall = precision_recall.precision_and_recall(*supports, chunk)
  assert precision == by_loops(fake, real, k)
  assert recall == by_loops(real, fake, k)
  assert precision != recall  # otherwise this test would not detect a swap


def test_on_a_line_the_balls_are_countable():
  real = np.array([[0.0], [1], [2], [3], [10]])
  # With k = 3 the radii are 3, 2, 2, 3, 9, so the balls cover [-3, 19].
  fake = np.array([[-3.0], [-3.1], [19], [19.1]])
  precision, recall = scores(real, fake)
  assert precision == 0.5
  # The radii are 22.1, 22.2, 22, 22.1, so every ball covers all real points.
  assert recall == 1


def test_a_dropped_mode_costs_recall_and_an_invented_one_precision():
  rng = np.random.default_rng(2)
  left, right = rng.normal(size=(40, 2)), rng.normal(size=(40, 2)) + 1000
  both = np.concatenate([left, right])
  precision, recall = scores(both, left)
  assert precision == 1 and recall == 0.5
  precision, recall = scores(left, both)
  assert precision == 0.5 and recall == 1


def test_a_set_covers_itself_even_in_copies_and_far_from_zero():
  # Each point occurs five times, so all radii are 0.
  x = np.repeat(np.random.default_rng(3).normal(size=(10, 63)) + 100, 5, axis=0)
  assert scores(x, x.copy()) == (1, 1)


def test_nearest_distances_are_the_shortest_of_all():
  rng = np.random.default_rng(4)
  a, b = rng.normal(size=(17, 3)).astype(np.float32), rng.normal(size=(9, 3))
  expected = [min(np.linalg.norm(p - q) for q in b) for p in a.astype(np.float64)]
  np.testing.assert_allclose(precision_recall.nearest_distances(a, b, chunk=4), expected)


def test_a_copy_is_at_distance_zero():
  # Far from zero, |a|^2 + |b|^2 and 2 a.b round differently.
  x = np.random.default_rng(5).normal(size=(6, 63)) + 100
  assert (precision_recall.nearest_distances(x, x[::-1]) == 0).all()
  assert precision_recall.nearest_distances(x[:0], x).shape == (0,)


def test_too_few_points_and_wrong_shapes_are_refused():
  x = np.zeros((9, 2))
  with pytest.raises(ValueError, match='need more than 3 pictures in each set, and one set has 3;'):
    scores(x, x[:3])
  with pytest.raises(ValueError, match=r'\[n, d\] and \[m, d\]'):
    precision_recall.nearest_distances(x, np.zeros((9, 3)))
  with pytest.raises(ValueError, match='reference set is empty'):
    precision_recall.nearest_distances(x, x[:0])
