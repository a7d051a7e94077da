"""Pictures measured by the stand-in extractor: a set, parts of the set, and a reference."""

import numpy as np
import stand_in

from gdistill.evaluation import reference
from gdistill.evaluation.features import extractors
from gdistill.evaluation.figures import measure

TOTAL, BANK = 1003, 600


def features():
  """Returns the features of TOTAL pictures."""
  return extractors.extract(stand_in.extractor(spatial='s'), stand_in.pictures(TOTAL))


def of(found, index, labels=None):
  """Returns the measure of the pictures `index`, from the features of all pictures."""
  index = np.asarray(index)
  part = {name: value[index] for name, value in found.items()}
  labels = None if labels is None else labels[index]
  return measure.Measured.of(stand_in.extractor(spatial='s'), part, index, TOTAL, BANK, labels)


def target():
  """Returns a reference of 900 other pictures."""
  extractor = stand_in.extractor(spatial='s')
  found = extractors.extract(extractor, stand_in.pictures(900, seed=1))
  whole = measure.Measured.of(extractor, found, np.arange(900), 900, 900)
  about = reference.describe(extractor, 'noise', 'all', 900, 'd', 900, (8, 8, 3))
  return reference.Reference(whole, about)


def figures(measured, target):
  return measure.figures(measured, target.measured, target.support)
