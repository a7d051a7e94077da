"""Means and covariances of features in float64, and distances between sets of pictures."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from gdistill import errors


@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
  """The moments of a set of feature vectors: count, and in float64 mean [d] and scatter [d, d].

  The scatter is the sum of (f - mean)(f - mean)^T over all feature vectors f. The scatter is
  stored instead of the covariance, because `merge` can combine the scatters of two sets exactly.
  """

  count: int
  mean: np.ndarray
  scatter: np.ndarray

  @classmethod
  def of(cls, features: np.ndarray) -> Moments:
    """Returns the moments of features [n, d]; raises NumericsError if a feature is not finite."""
    features = np.asarray(features, np.float64)
    if features.ndim != 2:
      raise ValueError(f'{features.shape=} must be [n, d]; give a row of features for each picture')
    if not np.isfinite(features).all():
      raise errors.NumericsError(
        'features are not all finite: the weights of the feature network are damaged; make the '
        'weight file again with gdistill convert'
      )
    mean = features.sum(0) / max(len(features), 1)
    centred = features - mean
    return cls(len(features), mean, centred.T @ centred)

  @classmethod
  def given(cls, mean: np.ndarray, cov: np.ndarray) -> Moments:
    """Returns moments with the given mean [d] and covariance [d, d], for an unknown sample count.

    The count is set to d + 1, the smallest number of samples whose covariance may have full rank.
    """
    mean, cov = np.asarray(mean, np.float64), np.asarray(cov, np.float64)
    if mean.ndim != 1 or cov.shape != (mean.size, mean.size):
      raise ValueError(
        f'{mean.shape=} and {cov.shape=} must be [d] and [d, d]; give both from the same features'
      )
    return cls(mean.size + 1, mean, cov * mean.size)

  @property
  def cov(self) -> np.ndarray:
    """The unbiased covariance, scatter / (count - 1)."""
    if self.count < 2:
      raise ValueError(
        f'{self.count=}: a covariance needs at least 2 samples; measure more pictures'
      )
    return self.scatter / (self.count - 1)

  @functools.cached_property
  def root(self) -> np.ndarray:
    """A matrix R [r, d] with R^T R = cov; r = min(d, count - 1) is the largest rank cov can have.

    Only the r largest eigenvalues of cov are used, because the d - r smallest eigenvalues are
    rounding errors of about 1e-16, whose square roots of about 1e-8 would not be negligible.
    """
    values, vectors = np.linalg.eigh(self.cov)
    rank = min(len(values), self.count - 1)
    values, vectors = values[len(values) - rank :], vectors[:, len(values) - rank :]
    return np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T

  def merge(self, other: Moments) -> Moments:
    """Returns the moments of the union of two sets of features."""
    _check_same_size(self, other)
    count = self.count + other.count
    gap = other.mean - self.mean
    share = other.count / max(count, 1)
    scatter = self.scatter + other.scatter + self.count * share * np.outer(gap, gap)
    return Moments(count, self.mean + share * gap, scatter)

  def __eq__(self, other: object) -> bool:
    if not isinstance(other, Moments):
      return NotImplemented
    return (
      self.count == other.count
      and np.array_equal(self.mean, other.mean)
      and np.array_equal(self.scatter, other.scatter)
    )

  __hash__ = None


def frechet_distance(a: Moments, b: Moments) -> float:
  """Returns the Fréchet distance between two Gaussians with the moments `a` and `b`.

  With means m and covariances S the Fréchet distance is
  |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a^1/2 S_b S_a^1/2)^1/2).
  The trace of (S_a^1/2 S_b S_a^1/2)^1/2 is computed as the sum of the singular values of
  S_a^1/2 S_b^1/2. The sum of the square roots of the eigenvalues of S_a^1/2 S_b S_a^1/2 is also
  equal to the trace, but is inaccurate for singular covariances.
  Source of the Fréchet distance: arXiv 1706.08500.
  """
  _check_same_size(a, b)
  gap = a.mean - b.mean
  overlap = np.linalg.svd(a.root @ b.root.T, compute_uv=False).sum()
  # Because of rounding, the computed distance of equal a and b can be slightly negative.
  return max(float(gap @ gap + np.trace(a.cov) + np.trace(b.cov) - 2 * overlap), 0.0)


def rms(a: np.ndarray, b: np.ndarray) -> float:
  """Returns the root mean squared difference of paired images or latents [n, ...].

  uint8 pixels are compared in units of [-1, 1]; float16 latents are compared without scaling.
  """
  if a.shape != b.shape or not a.size:
    raise ValueError(f'{a.shape=} and {b.shape=} must be equal; give two sets of the same pictures')
  if a.dtype != b.dtype or a.dtype not in (np.uint8, np.float16):
    raise ValueError(f'{a.dtype=} and {b.dtype=}: give both as uint8 pixels or as float16 latents')
  unit = 127.5 if a.dtype == np.uint8 else 1.0
  difference = a.astype(np.float32) - b.astype(np.float32)
  return float(np.sqrt(np.mean(np.square(difference), dtype=np.float64)) / unit)


def _check_same_size(a: Moments, b: Moments) -> None:
  if a.mean.shape != b.mean.shape:
    raise ValueError(
      f'features have different sizes: {a.mean.shape} and {b.mean.shape}; measure '
      'both sets with the same feature network'
    )
