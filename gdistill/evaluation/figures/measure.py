"""Measurements of a set of pictures: sums over features, merged over batches and processes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import numpy as np

from gdistill.evaluation.features import extractors
from gdistill.evaluation.figures import inception_score
from gdistill.evaluation.figures import kernel_distance
from gdistill.evaluation.figures import precision_recall
from gdistill.evaluation.figures import statistics

FORMAT = 1  # version of stored measurements; increase FORMAT if the stored arrays change
_ROWS = 2048  # number of pictures whose features are collected before Running adds up their moments
SPLITS = 10  # number of splits of the inception score for sets of at least 1,000 pictures
KID_SUBSETS, KID_SIZE = 100, 1000  # number of subsets for KID, and pictures in a subset
NEIGHBOURS = 3  # k of the k-th nearest neighbour in precision and recall


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
  """Measurements of pictures of a set: moments, sums, and the features of a random subset.

  The kept features are called the bank; precision, recall and KID are computed from the bank. The
  pictures of the bank and the splits of the inception score are fixed random choices, because a
  folder may be sorted by class.
  """

  features: statistics.Moments  # moments of the features for the Fréchet distance
  spatial: statistics.Moments | None  # moments of the spatial features, or None without them
  score: inception_score.Sums | None  # sums for the inception score, or None without logits
  right: int | None  # number of correctly classified pictures; None if not known
  bank: np.ndarray  # features of a random subset of the pictures [m, d] float32
  bank_index: np.ndarray  # [m] indices, within the set, of the pictures in `bank`

  @classmethod
  def of(
    cls,
    extractor: extractors.Extractor,
    found: Mapping[str, np.ndarray],
    index: np.ndarray,
    total: int,
    bank: int,
    labels: np.ndarray | None = None,
  ) -> Measured:
    """Returns the measurements of one batch of pictures.

    `found` are the features of the batch, as `extractor` returned them.
    `index` [b] are the indices of the batch's pictures within the set.
    `total` is the number of pictures in the whole set.
    `bank` is the number of pictures of the whole set whose features are kept.
    `labels` [b] are class labels, or None if the extractor does not predict the data set's classes.
    """
    features, score, right = found[extractor.features], None, None
    place = _places(total)[index]
    if extractor.logits:
      logits = found[extractor.logits]
      splits = SPLITS if total >= 100 * SPLITS else 1
      score = inception_score.Sums.of(logits, place, total, splits)
      if labels is not None:
        right = int(np.sum(np.argmax(logits, axis=1) == labels))
    kept = place < bank
    spatial = found[extractor.spatial] if extractor.spatial else None
    return cls(
      statistics.Moments.of(features),
      None if spatial is None else statistics.Moments.of(spatial),
      score,
      right,
      features[kept],
      np.asarray(index)[kept],
    )

  def merge(self, other: Measured) -> Measured:
    """Returns the measurements of the union of two disjoint parts of a set of pictures."""
    both = lambda f, a, b: None if a is None else f(a, b)
    return Measured(
      self.features.merge(other.features),
      both(statistics.Moments.merge, self.spatial, other.spatial),
      both(inception_score.Sums.merge, self.score, other.score),
      both(int.__add__, self.right, other.right),
      np.concatenate([self.bank, other.bank]),
      np.concatenate([self.bank_index, other.bank_index]),
    )

  @property
  def ordered_bank(self) -> np.ndarray:
    """The features in `bank`, sorted by the index of the picture within the set."""
    return self.bank[np.argsort(self.bank_index, kind='stable')]

  def to_arrays(self) -> dict[str, np.ndarray]:
    """Returns all measurements as {name: array}, to be stored in an .npz file."""
    out = {'bank': self.bank, 'bank_index': self.bank_index}
    for name in ('features', 'spatial', 'score'):
      part = getattr(self, name)
      if part is not None:
        fields = [f.name for f in dataclasses.fields(part)]
        out |= {f'{name}_{f}': np.asarray(getattr(part, f)) for f in fields}
    if self.right is not None:
      out['right'] = np.asarray(self.right)
    return out

  @classmethod
  def from_arrays(cls, arrays: dict[str, np.ndarray]) -> Measured:
    """Returns the measurements from arrays made by `to_arrays`; KeyError if an array is missing."""

    def part(kind, name):
      names = [f'{name}_{f.name}' for f in dataclasses.fields(kind)]
      if names[0] not in arrays:
        return None
      return kind(*(v if v.ndim else v.item() for v in (arrays[n] for n in names)))

    if 'features_count' not in arrays:
      raise KeyError('features_count')
    return cls(
      part(statistics.Moments, 'features'),
      part(statistics.Moments, 'spatial'),
      part(inception_score.Sums, 'score'),
      int(arrays['right']) if 'right' in arrays else None,
      arrays['bank'],
      arrays['bank_index'],
    )


@functools.lru_cache(maxsize=4)
def _places(total: int) -> np.ndarray:
  """Returns [total] integers: the place of each picture after the shuffle of torch-fidelity."""
  return np.argsort(np.random.RandomState(2020).permutation(total))


class Running:
  """An accumulator that measures one set of pictures batch by batch, in bounded memory."""

  def __init__(self, extractor: extractors.Extractor, total: int, bank: int):
    self._make = functools.partial(Measured.of, extractor, total=total, bank=bank)
    self._waiting: list[tuple] = []
    self._sum: Measured | None = None

  def add(
    self, found: Mapping[str, np.ndarray], index: np.ndarray, labels: np.ndarray | None = None
  ) -> None:
    """Adds the features `found` of one batch, as the extractor returned them.

    `index` [b] are the indices of the batch's pictures within the set, `labels` [b] their classes.
    """
    self._waiting.append((found, index, labels))
    # Merging costs about as much as the moments of _ROWS pictures, so batches are collected first.
    if sum(len(index) for _, index, _ in self._waiting) >= _ROWS:
      self._fold()

  def _fold(self) -> None:
    found, index, labels = zip(*self._waiting, strict=True)
    part = self._make(
      {name: np.concatenate([f[name] for f in found]) for name in found[0]},
      np.concatenate(index),
      labels=None if labels[0] is None else np.concatenate(labels),
    )
    self._sum = part if self._sum is None else self._sum.merge(part)
    self._waiting = []

  def measured(self) -> Measured | None:
    """Returns the measurements of all batches added so far, or None if no batch was added."""
    if self._waiting:
      self._fold()
    return self._sum


def figures(drawn: Measured, reference: Measured, support: precision_recall.Support | None) -> dict:
  """Returns {name: number}, the metrics of sampled pictures `drawn` against a reference set.

  - 'fd' is the Fréchet distance of the features.
  - 'sfid' is the Fréchet distance of the spatial features.
  - 'inception_score' and 'accuracy' depend on the sampled pictures alone.
  - 'kid' is the kernel distance, on subsets of at most 1,000 pictures.
  - 'precision' and 'recall' use the distance to the third nearest neighbour.
  `support` is the support of the reference set's bank (the features of a random subset); with None,
  'kid', 'precision' and 'recall' are left out.
  """
  found = {'fd': statistics.frechet_distance(drawn.features, reference.features)}
  if drawn.spatial is not None and reference.spatial is not None:
    found['sfid'] = statistics.frechet_distance(drawn.spatial, reference.spatial)
  if drawn.score is not None:
    found['inception_score'], found['inception_score_std'] = drawn.score.score()
  if drawn.right is not None:
    found['accuracy'] = drawn.right / int(drawn.features.count)
  bank = drawn.ordered_bank
  if support is None:
    return found
  size = min(KID_SIZE, len(bank), len(support.points))
  if size >= 2:
    found['kid'], found['kid_std'] = kernel_distance.distance(
      bank, support.points, subsets=KID_SUBSETS if size == KID_SIZE else 1, size=size
    )
  if len(bank) > NEIGHBOURS:
    found['precision'], found['recall'] = precision_recall.precision_and_recall(
      support, precision_recall.Support.of(bank, NEIGHBOURS)
    )
  return found
