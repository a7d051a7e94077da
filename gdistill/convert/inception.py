"""The published weights of FID's Inception-v3, under their torch names, for models.inception."""

from collections.abc import Mapping

import numpy as np

from gdistill import errors
from gdistill.convert import folding
from gdistill.models import inception

_OF = 'the FID Inception-v3'


def params_from(state: Mapping[str, np.ndarray]) -> dict:
  """Returns Flax parameters from {'Mixed_5b.branch1x1.conv.weight': [O, I, H, W], ...}.

  Raises ConfigError that names the first array that is missing or not expected.
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
    raise errors.ConfigError(f'{min(state)!r} is not an array of {_OF}')
  return params
