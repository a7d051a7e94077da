"""Improved precision and recall of features, and distances to the nearest feature of a set.

Source of improved precision and recall: arXiv 1904.06991. The support of a set of points is the
union of balls around the points. The radius of a ball is the distance from the ball's centre to the
k-th nearest other point of the set.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Support:
  """The support of points [m, d]: a ball around each point, up to its k-th nearest neighbour."""

  points: np.ndarray  # [m, d] centres of the balls
  squared_radii: np.ndarray  # [m] squared radius of each ball

  @classmethod
  def of(cls, points: np.ndarray, k: int = 3, chunk: int = 1000) -> Support:
    """Returns the support of points [m, d]; raises ValueError if there are k points or fewer."""
    points, _ = _pair(points, points)
    return cls(points, _squared_radii(points, k, chunk))

  def share(self, points: np.ndarray, chunk: int = 1000) -> float:
    """Returns the fraction of points [n, d] that lie in at least one ball of the support."""
    points, centres = _pair(points, self.points)
    blocks = _squared_distances(points, centres, chunk)
    inside = [(block <= self.squared_radii[None]).any(1) for _, block in blocks]
    return float(np.concatenate(inside).mean())


def precision_and_recall(real: Support, drawn: Support, chunk: int = 1000) -> tuple[float, float]:
  """Returns (precision, recall) of sampled pictures, both from 0 to 1.

  Precision is the fraction of the sampled pictures' features inside the support of the real
  pictures' features.
  Recall is the fraction of the real pictures' features inside the support of the sampled
  pictures' features.
  Precision and recall for different k or different numbers of pictures are not comparable.
  """
  return real.share(drawn.points, chunk), drawn.share(real.points, chunk)


def nearest_distances(features: np.ndarray, reference: np.ndarray, chunk: int = 1000) -> np.ndarray:
  """Returns [n] Euclidean distances from each row of `features` to the nearest `reference` row."""
  features, reference = _pair(features, reference)
  if not len(reference):
    raise ValueError(
      f'{reference.shape=}: the reference set is empty; give features of at least one picture'
    )
  nearest = [block.min(1) for _, block in _squared_distances(features, reference, chunk)]
  return np.sqrt(np.concatenate([np.zeros(0), *nearest]))


def _squared_radii(points: np.ndarray, k: int, chunk: int) -> np.ndarray:
  """Returns [m] squared distances from each point to its k-th nearest other point."""
  if not 1 <= k < len(points):
    raise ValueError(
      f'precision and recall with {k=} neighbours need more than {k} pictures in each set, and one '
      f'set has {len(points)}; give more pictures'
    )
  radii = []
  for start, block in _squared_distances(points, points, chunk):
    rows = np.arange(len(block))
    block[rows, start + rows] = np.inf
    radii.append(np.partition(block, k - 1, axis=1)[:, k - 1])
  return np.concatenate(radii)


def _squared_distances(
  a: np.ndarray, b: np.ndarray, chunk: int
) -> Iterator[tuple[int, np.ndarray]]:
  """Yields (start, block) for at most `chunk` rows of `a` at a time.

  `block` [rows, m] holds the squared distances between rows of `a` and all rows of `b`; `start` is
  the index of the first of these rows in `a`. A squared distance is |a|^2 + |b|^2 - 2 a.b, and is
  set to zero if it is as small as a rounding error.
  """
  b_norms = np.square(b).sum(1)
  for start in range(0, len(a), chunk):
    rows = a[start : start + chunk]
    norms = np.square(rows).sum(1)[:, None] + b_norms[None]
    squared = norms - 2 * rows @ b.T
    yield start, np.where(squared > 1e-12 * norms, squared, 0.0)


def _pair(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
    raise ValueError(
      f'{a.shape=} and {b.shape=} must be [n, d] and [m, d]; give features of one network'
    )
  return a, b
