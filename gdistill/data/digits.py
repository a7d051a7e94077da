"""Reads the 1,797 handwritten digits of 8x8 grey pixels that the package scikit-learn includes."""

import numpy as np

from gdistill.data import source
from gdistill.recipe import settings as recipes

CLASS_NAMES = tuple('0123456789')


def load(
  settings: recipes.Data, shape: tuple[int, int, int]
) -> tuple[source.Source, source.Source]:
  """Returns (training, held out), two sources of handwritten digits.

  A grey level of scikit-learn, 0 to 16, becomes the pixel value round(255 level / 16).
  """
  del shape  # the digits are always 8x8 and grey, so `shape` is not needed
  from sklearn import datasets  # imported only here, because scikit-learn loads slowly

  digits = datasets.load_digits()
  pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
  labels = digits.target.astype(np.int32)
  whole = source.in_memory(pixels, labels, CLASS_NAMES)
  return source.held_out(whole, settings.held_out)
