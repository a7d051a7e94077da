"""The embedded data: 1,797 real handwritten digits, 8x8, from scikit-learn's wheel."""

import numpy as np

from gdistill.data import source

CLASS_NAMES = tuple('0123456789')
SHAPE = (8, 8, 1)


def load(held_out: float) -> tuple[source.Source, source.Source]:
  """(training, held out): the same share of every class is held out, by a fixed draw.

  The set's 17 grey levels 0..16 become pixels round(255 level / 16).
  """
  from sklearn import datasets  # heavy, and only these lines need it

  digits = datasets.load_digits()
  pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
  labels = digits.target.astype(np.int32)
  kept, held = [], []
  for c in range(len(CLASS_NAMES)):
    # A seed of its own: the split is part of the data, not of a run.
    index = np.random.default_rng(c).permutation(np.flatnonzero(labels == c))
    cut = round(held_out * len(index))
    held.append(index[:cut])
    kept.append(index[cut:])
  train, test = (np.sort(np.concatenate(part)) for part in (kept, held))
  return tuple(source.Source(pixels[i], labels[i], CLASS_NAMES) for i in (train, test))
