"""The inception score: high if each picture's class is certain and all classes are frequent."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Sums:
  """The sums, in float64, from which the score follows; sums of parts of a set can be added.

  For each split: the number of pictures [splits], the sum of p(y|x) [splits, classes], and the sum
  over pictures of sum_y p log p [splits].
  """

  count: np.ndarray
  p: np.ndarray
  p_log_p: np.ndarray

  @classmethod
  def of(cls, logits: np.ndarray, place: np.ndarray, total: int, splits: int = 1) -> Sums:
    """Returns the sums of logits [n, classes] of pictures at the places `place` [n] of `total`.

    Split s holds the places from s * total // splits up to the start of the next split. The labels
    of neighbouring places should be mixed.
    """
    logits, place = np.asarray(logits, np.float64), np.asarray(place)
    if logits.ndim != 2 or place.shape != logits.shape[:1]:
      raise ValueError(f'{logits.shape=} must be [n, classes] and {place.shape=} [n]')
    if not 1 <= splits <= total:
      raise ValueError(f'{splits=} must lie between 1 and the number of images, {total}')
    log_p = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    p, first = np.exp(log_p), np.arange(splits) * total // splits
    split = np.searchsorted(first, place, side='right') - 1
    count, sums, p_log_p = np.zeros(splits), np.zeros((splits, logits.shape[1])), np.zeros(splits)
    np.add.at(count, split, 1.0)
    np.add.at(p_log_p, split, np.sum(np.where(p > 0, p * log_p, 0.0), axis=1))
    for s in np.unique(split):
      sums[s] = p[split == s].sum(0)
    return cls(count, sums, p_log_p)

  def merge(self, other: Sums) -> Sums:
    """Returns the sums over two disjoint parts of one set of pictures."""
    return Sums(self.count + other.count, self.p + other.p, self.p_log_p + other.p_log_p)

  def score(self) -> tuple[float, float]:
    """exp(E_x KL(p(y|x) || p(y))): returns its mean and standard deviation over the splits.

    The score lies between 1 and the number of classes. Each split has its own p(y). Source:
    Salimans et al. 1606.03498 (10 splits).
    """
    if not self.count.all():
      raise ValueError(f'{self.count=}: every split needs a picture')
    mean = self.p / self.count[:, None]
    entropy = -np.sum(np.where(mean > 0, mean * np.log(np.where(mean > 0, mean, 1.0)), 0.0), axis=1)
    scores = np.exp(self.p_log_p / self.count + entropy)
    return float(np.mean(scores)), float(np.std(scores))


def score(logits: np.ndarray, splits: int = 1) -> tuple[float, float]:
  """Returns `Sums.score` of the logits [n, classes] of a whole set of pictures."""
  logits = np.asarray(logits)
  return Sums.of(logits, np.arange(len(logits)), len(logits), splits).score()
