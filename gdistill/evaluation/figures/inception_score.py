"""The inception score: how sure a classifier is of each picture, how even over the classes."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Sums:
  """What the score needs of pictures, in float64: parts add up to the whole.

  For each split its count [splits], the sum of p(y|x) [splits, classes] and the sum over pictures
  of sum_y p log p [splits].
  """

  count: np.ndarray
  p: np.ndarray
  p_log_p: np.ndarray

  @classmethod
  def of(cls, logits: np.ndarray, place: np.ndarray, total: int, splits: int = 1) -> Sums:
    """Of logits [n, classes] of pictures that stand at `place` [n] of `total`.

    Split s is the run of neighbours from s * total // splits on: pictures should stand with their
    labels mixed.
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
    """The sums over both sets of pictures of one whole."""
    return Sums(self.count + other.count, self.p + other.p, self.p_log_p + other.p_log_p)

  def score(self) -> tuple[float, float]:
    """exp(E_x KL(p(y|x) || p(y))): mean and standard deviation over the splits.

    Between 1 and the number of classes; each split has its own p(y). Source: Salimans et al.
    1606.03498 (10 splits).
    """
    if not self.count.all():
      raise ValueError(f'{self.count=}: every split needs a picture')
    mean = self.p / self.count[:, None]
    entropy = -np.sum(np.where(mean > 0, mean * np.log(np.where(mean > 0, mean, 1.0)), 0.0), axis=1)
    scores = np.exp(self.p_log_p / self.count + entropy)
    return float(np.mean(scores)), float(np.std(scores))


def score(logits: np.ndarray, splits: int = 1) -> tuple[float, float]:
  """`Sums.score` of logits [n, classes], all there are."""
  logits = np.asarray(logits)
  return Sums.of(logits, np.arange(len(logits)), len(logits), splits).score()
