"""Improved precision and recall on features, and the distance to the nearest of a reference set.

Source: Kynkaanniemi et al. 1904.06991. Each set's support is the union of balls around its points,
reaching to the point's k-th neighbour within the set.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Support:
  """Balls around points [m, d], each reaching to its k-th neighbour among them."""

  points: np.ndarray
  squared_radii: np.ndarray

  @classmethod
  def of(cls, points: np.ndarray, k: int = 3, chunk: int = 1000) -> Support:
    """Needs more than k points."""
    points, _ = _pair(points, points)
    return cls(points, _squared_radii(points, k, chunk))

  def share(self, points: np.ndarray, chunk: int = 1000) -> float:
    """The share of points [n, d] that lie in at least one of the closed balls."""
    points, centres = _pair(points, self.points)
    blocks = _squared_distances(points, centres, chunk)
    inside = [(block <= self.squared_radii[None]).any(1) for _, block in blocks]
    return float(np.concatenate(inside).mean())


def precision_and_recall(real: Support, drawn: Support, chunk: int = 1000) -> tuple[float, float]:
  """Precision: the share of the drawn points inside the support of the real ones.

  Recall is the other way round; the real set comes first, as in the authors' code. Numbers at
  different k or different sizes do not compare.
  """
  return real.share(drawn.points, chunk), drawn.share(real.points, chunk)


def nearest_distances(features: np.ndarray, reference: np.ndarray, chunk: int = 1000) -> np.ndarray:
  """[n] Euclidean distances from each of features [n, d] to its nearest in reference [m, d]."""
  features, reference = _pair(features, reference)
  if not len(reference):
    raise ValueError('the reference set is empty')
  nearest = [block.min(1) for _, block in _squared_distances(features, reference, chunk)]
  return np.sqrt(np.concatenate([np.zeros(0), *nearest]))


def _squared_radii(points: np.ndarray, k: int, chunk: int) -> np.ndarray:
  """[m] squared distances to the k-th neighbour, the point itself not counted."""
  if not 1 <= k < len(points):
    raise ValueError(f'{k=} needs more than {k} points in each set, found {len(points)}')
  radii = []
  for start, block in _squared_distances(points, points, chunk):
    rows = np.arange(len(block))
    block[rows, start + rows] = np.inf
    radii.append(np.partition(block, k - 1, axis=1)[:, k - 1])
  return np.concatenate(radii)


def _squared_distances(
  a: np.ndarray, b: np.ndarray, chunk: int
) -> Iterator[tuple[int, np.ndarray]]:
  """(start, [rows, m]) blocks of |a|^2 + |b|^2 - 2 a.b, with rounding around zero set to zero."""
  b_norms = np.square(b).sum(1)
  for start in range(0, len(a), chunk):
    rows = a[start : start + chunk]
    norms = np.square(rows).sum(1)[:, None] + b_norms[None]
    squared = norms - 2 * rows @ b.T
    yield start, np.where(squared > 1e-12 * norms, squared, 0.0)


def _pair(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
    raise ValueError(f'{a.shape=} and {b.shape=} must be [n, d] and [m, d]')
  return a, b
