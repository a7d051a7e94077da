"""The embedded data: 1,797 real handwritten digits, 8x8, from scikit-learn's wheel."""

import numpy as np

from gdistill.data import source
from gdistill.recipe import settings as recipes

CLASS_NAMES = tuple('0123456789')


def load(
  settings: recipes.Data, shape: tuple[int, int, int]
) -> tuple[source.Source, source.Source]:
  """(training, held out); the set's 17 grey levels 0..16 become pixels round(255 level / 16)."""
  del shape  # they are 8x8 and grey, whatever is wanted
  from sklearn import datasets  # heavy, and only these lines need it

  digits = datasets.load_digits()
  pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
  labels = digits.target.astype(np.int32)
  whole = source.in_memory(pixels, labels, CLASS_NAMES)
  return source.held_out(whole, settings.held_out)
