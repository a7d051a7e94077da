"""Converts published weights of FID's Inception-v3 to Flax parameters of models.inception."""

from collections.abc import Mapping

import numpy as np

from gdistill import errors
from gdistill.convert import folding
from gdistill.models import inception

_OF = 'the FID Inception-v3'


def params_from(state: Mapping[str, np.ndarray]) -> dict:
  """Returns Flax parameters from {'Mixed_5b.branch1x1.conv.weight': [O, I, H, W], ...}.

  Raises ConfigError with the name of the first array that is missing from `state`, or that the
  Inception-v3 does not have.
  """
  state, params = dict(state), {}
  layers = [name.removesuffix('.conv.weight') for name in state if name.endswith('.conv.weight')]
  for layer in layers:
    params[layer.replace('.', '_')] = folding.conv(
      state, f'{layer}.conv', f'{layer}.bn', inception.BATCH_NORM_EPSILON, _OF
    )
  params['fc_kernel'] = folding.taken(state, 'fc.weight', _OF).T.astype(np.float32)
  params['fc_bias'] = folding.taken(state, 'fc.bias', _OF).astype(np.float32)
  if state:
    raise errors.ConfigError(
      f'{min(state)!r} is not an array of {_OF}; use a file with the weights of {_OF} alone'
    )
  return params
