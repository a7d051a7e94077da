"""The inception score: high if a classifier is sure of each picture and all classes occur."""

from __future__ import annotations

import dataclasses

import numpy as np

from gdistill import errors


@dataclasses.dataclass(frozen=True, eq=False)
class Sums:
  """The sums over pictures, in float64, from which the inception score is computed.

  The pictures of a set are divided into splits, and each split has its own sums. `merge` adds the
  sums over two parts of a set.
  """

  count: np.ndarray  # [splits] number of pictures in each split
  p: np.ndarray  # [splits, classes] sum over pictures x of p(y|x) for each class y
  p_log_p: np.ndarray  # [splits] sum over pictures x and classes y of p(y|x) log p(y|x)

  @classmethod
  def of(cls, logits: np.ndarray, place: np.ndarray, total: int, splits: int = 1) -> Sums:
    """Returns the sums over n pictures out of a set of `total` pictures; `logits` are [n, classes].

    `place` [n] is each picture's place in the set, from 0 to total - 1. A picture is in split s if
    its place is at least s * total // splits and less than (s + 1) * total // splits. The places
    should be random, because if they were sorted by class, a split would lack classes.
    """
    logits, place = np.asarray(logits, np.float64), np.asarray(place)
    if logits.ndim != 2 or place.shape != logits.shape[:1]:
      raise ValueError(
        f'{logits.shape=} and {place.shape=} must be [n, classes] and [n]; give a row and a place '
        'for each image'
      )
    if not np.isfinite(logits).all():
      raise errors.NumericsError(
        'logits are not all finite: the weights of the feature network are damaged; make the '
        'weight file again with gdistill convert'
      )
    if not 1 <= splits <= total:
      raise ValueError(
        f'{splits=} must be from 1 to the number of images, {total}; use fewer splits'
      )
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
    """Returns the sums over the union of two disjoint parts of one set of pictures."""
    return Sums(self.count + other.count, self.p + other.p, self.p_log_p + other.p_log_p)

  def score(self) -> tuple[float, float]:
    """Returns (mean, standard deviation) of the inception score over the splits.

    The inception score of a split is exp(mean_x KL(p(y|x) || p(y))) over pictures x and classes y,
    where p(y) is the mean of p(y|x) over the pictures of the split. The inception score lies
    between 1 and the number of classes. Source of the inception score: arXiv 1606.03498, which uses
    10 splits.
    """
    if not self.count.all():
      raise ValueError(f'{self.count=}: every split needs a picture; use fewer splits')
    mean = self.p / self.count[:, None]
    entropy = -np.sum(np.where(mean > 0, mean * np.log(np.where(mean > 0, mean, 1.0)), 0.0), axis=1)
    scores = np.exp(self.p_log_p / self.count + entropy)
    return float(np.mean(scores)), float(np.std(scores))


def score(logits: np.ndarray, splits: int = 1) -> tuple[float, float]:
  """Returns (mean, standard deviation) of the inception score over splits of `logits`."""
  logits = np.asarray(logits)
  return Sums.of(logits, np.arange(len(logits)), len(logits), splits).score()
