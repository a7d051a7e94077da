"""Measurements of a set of pictures: sums that can be merged over batches, devices and hosts."""

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

FORMAT = 1  # version of the stored measurements; raise it when a figure is computed differently
_ROWS = 2048
SPLITS = 10  # splits of the inception score for sets of at least 1,000 pictures
KID_SUBSETS, KID_SIZE = 100, 1000
NEIGHBOURS = 3  # k of precision and recall


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
  """Measurements of some pictures of a set: moments, sums, and the features of a random subset.

  The subset is the bank; its features serve precision, recall and KID. The bank is a fixed random
  choice, because the pictures of a folder are sorted by class. The splits of the inception score
  are a fixed random choice too. `right` counts the pictures whose largest logit is their label;
  `right` is None if the extractor's classes are not those of the labels.
  """

  features: statistics.Moments
  spatial: statistics.Moments | None
  score: inception_score.Sums | None
  right: int | None
  bank: np.ndarray  # [m, d] float32
  bank_index: np.ndarray  # [m] indices of the bank's pictures within the set

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
    """Returns the measurements of one batch of features `found` that `extractor` returned.

    `index` [b] are the pictures of the batch, out of `total`. `bank` is the size of the whole
    set's bank. `labels` are given if the extractor's classes are those of the data set.
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
    """Returns the measurements of both parts of the set together."""
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
    """The bank's features sorted by picture, whatever the order in which they were measured."""
    return self.bank[np.argsort(self.bank_index, kind='stable')]

  def to_arrays(self) -> dict[str, np.ndarray]:
    """Returns all measurements as named arrays, for an .npz file."""
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
    """Returns the measurements from the arrays of `to_arrays`; KeyError if an array is missing."""

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
  """Returns [total] integers: each picture's place in the order of torch-fidelity's shuffle."""
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
    """Adds one batch of the extractor's features, those of the pictures `index` [b]."""
    self._waiting.append((found, index, labels))
    # A merge costs about as much as the moments of _ROWS rows, so batches are collected first.
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
    """Returns the measurements of all batches added so far, or None if there were none."""
    if self._waiting:
      self._fold()
    return self._sum


def figures(drawn: Measured, reference: Measured, support: precision_recall.Support | None) -> dict:
  """Returns the figures of drawn pictures against a reference, {name: number}.

  'fd' is the Fréchet distance, 'sfid' the Fréchet distance of the spatial features, 'kid' the
  kernel distance with subsets of at most 1,000 pictures. Precision and recall use the 3 nearest
  neighbours. `support` is that of the reference's bank; None leaves out 'kid', precision and
  recall.
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
