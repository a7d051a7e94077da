"""What is kept of pictures to measure them: sums that merge over batches, devices and hosts."""

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

FORMAT = 1  # of what is kept in files: raised where a figure is computed otherwise
_ROWS = 2048
SPLITS = 10  # of the inception score, where there are pictures enough
KID_SUBSETS, KID_SIZE = 100, 1000
NEIGHBOURS = 3


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
  """Of the pictures `index` out of `total`: moments, sums, and the features of `bank` of them.

  The bank serves what needs neighbours (precision, recall, KID): pictures drawn once and for all,
  since folders come sorted by class. The splits of the inception score are drawn likewise. `right`
  counts the pictures whose largest logit is their label, and is None where the extractor knows
  other classes.
  """

  features: statistics.Moments
  spatial: statistics.Moments | None
  score: inception_score.Sums | None
  right: int | None
  bank: np.ndarray  # [m, d] float32
  bank_index: np.ndarray  # [m]

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
    """Of one batch of what `extractor` returned. `labels` are of its own classes."""
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
    """Both sets of pictures together."""
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
    """The bank in the pictures' order, whoever measured which."""
    return self.bank[np.argsort(self.bank_index, kind='stable')]

  def to_arrays(self) -> dict[str, np.ndarray]:
    """Everything, for an .npz file."""
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
    """The inverse of `to_arrays`; KeyError where something is missing."""

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
  """[total]: where each picture stands in the order that torch-fidelity shuffles them into."""
  return np.argsort(np.random.RandomState(2020).permutation(total))


class Running:
  """Measures one set of pictures batch by batch; holds few of their features at a time."""

  def __init__(self, extractor: extractors.Extractor, total: int, bank: int):
    self._make = functools.partial(Measured.of, extractor, total=total, bank=bank)
    self._waiting: list[tuple] = []
    self._sum: Measured | None = None

  def add(
    self, found: Mapping[str, np.ndarray], index: np.ndarray, labels: np.ndarray | None = None
  ) -> None:
    """One batch of what the extractor returned, of the pictures `index` [b]."""
    self._waiting.append((found, index, labels))
    # A merge costs as much as the moments of so many rows.
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
    """Of all that was added; None of nothing."""
    if self._waiting:
      self._fold()
    return self._sum


def figures(drawn: Measured, reference: Measured, support: precision_recall.Support | None) -> dict:
  """What drawn pictures score against a reference and the support of its bank, where it has one.

  'fd' is the Frechet distance; 'sfid' that of the spatial features; 'kid' the kernel distance with
  subsets of at most 1,000; precision and recall have the nearest 3 neighbours.
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
