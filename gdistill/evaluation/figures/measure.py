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

FORMAT = 1  # format of stored measurements; increase FORMAT if the stored arrays change
_ROWS = 2048  # number of pictures whose features are collected before Running adds up their moments
SPLITS = 10  # number of splits of the inception score for sets of at least 1,000 pictures
KID_SUBSETS, KID_SIZE = 100, 1000  # KID: number of subsets, and of pictures in a subset
NEIGHBOURS = 3  # k of the k-th nearest neighbour in precision and recall


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
  """Measurements of a set of pictures, or of a part of the set, from which metrics are computed.

  The features of a random subset of the pictures are called the bank, from which precision, recall
  and KID are computed. The pictures of the bank and the splits of the inception score are chosen at
  random with a fixed seed, because a folder of pictures may be sorted by class.
  """

  features: statistics.Moments  # mean and scatter of the features, for the Fréchet distance
  spatial: statistics.Moments | None  # moments of the spatial features; None if there are none
  score: inception_score.Sums | None  # sums for the inception score; None if there are no logits
  right: int | None  # number of correctly classified pictures, or None if there are no labels
  bank: np.ndarray  # [m, d] float32 features of a random subset of the pictures
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

    `found` {name: array} holds the outputs of `extractor` for the pictures of the batch.
    `index` [b] holds the indices of the batch's pictures within the set.
    `total` is the number of pictures in the set.
    `bank` is the number of pictures in the random subset of the set whose features are stored.
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
    """The features in `bank` [m, d], in the order of the pictures in the set."""
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
    """Returns measurements from arrays of `to_arrays`; raises KeyError if an array is missing."""

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
  """Returns integers [total]; entry i is the place of picture i after torch-fidelity's shuffle."""
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
    """Adds a batch of pictures; `found` {name: array} holds the extractor's outputs for the batch.

    `index` [b] holds the indices of the batch's pictures within the set. `labels` [b] are the class
    labels of the batch's pictures.
    """
    self._waiting.append((found, index, labels))
    # Merging two sets of moments costs about as much as the moments of _ROWS pictures, so batches
    # are collected until they have _ROWS pictures.
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

  - 'fd' is the Fréchet distance between the features of the two sets.
  - 'sfid' is the Fréchet distance between the spatial features of the two sets.
  - 'inception_score' and 'accuracy' do not depend on the reference set.
  - 'kid' is the kernel distance, on subsets of at most 1,000 pictures.
  - 'precision' and 'recall' use the distance to the third nearest neighbour.
  `support` holds the features of a random subset of the reference set and the balls around the
  features; if `support` is None, 'kid', 'precision' and 'recall' are left out.
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
