"""The embedded data: 1,797 real handwritten digits, 8x8, from scikit-learn's wheel."""

import numpy as np

from gdistill.data import source
from gdistill.recipe import settings as recipes

CLASS_NAMES = tuple('0123456789')


def load(
  settings: recipes.Data, shape: tuple[int, int, int]
) -> tuple[source.Source, source.Source]:
  """Returns (training, held out); a grey level of 0 to 16 becomes round(255 level / 16)."""
  del shape  # the digits are always 8x8 and grey
  from sklearn import datasets  # a slow import that only this function needs

  digits = datasets.load_digits()
  pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
  labels = digits.target.astype(np.int32)
  whole = source.in_memory(pixels, labels, CLASS_NAMES)
  return source.held_out(whole, settings.held_out)
