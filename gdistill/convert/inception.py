"""The published weights of FID's Inception-v3, by their torch names, for models.inception."""

from collections.abc import Mapping

import numpy as np

from gdistill import errors
from gdistill.models import inception


def params_from(state: Mapping[str, np.ndarray]) -> dict:
  """Flax parameters from {'Mixed_5b.branch1x1.conv.weight': [O, I, H, W], ...}.

  A batch norm gamma (y - mean) / sqrt(var + epsilon) + beta after y = conv(h) is folded into the
  convolution, in float64. ConfigError names the first array that is missing or not expected.
  """
  state, params = dict(state), {}
  layers = [name.removesuffix('.conv.weight') for name in state if name.endswith('.conv.weight')]
  for layer in layers:
    kernel = _taken(state, f'{layer}.conv.weight')
    gamma, beta, mean, var = (
      _taken(state, f'{layer}.bn.{name}') for name in ('weight', 'bias', 'running_mean', 'running_var')
    )
    state.pop(f'{layer}.bn.num_batches_tracked', None)
    factor = gamma / np.sqrt(var + inception.BATCH_NORM_EPSILON)
    params[layer.replace('.', '_')] = {
      'kernel': (kernel * factor[:, None, None, None]).transpose(2, 3, 1, 0).astype(np.float32),
      'bias': (beta - mean * factor).astype(np.float32),
    }
  params['fc_kernel'] = _taken(state, 'fc.weight').T.astype(np.float32)
  params['fc_bias'] = _taken(state, 'fc.bias').astype(np.float32)
  if state:
    raise errors.ConfigError(f'{min(state)!r} is no array of the FID Inception-v3')
  return params


def _taken(state: dict, name: str) -> np.ndarray:
  if name not in state:
    raise errors.ConfigError(f'{name!r} is missing: these are not weights of the FID Inception-v3')
  return np.asarray(state.pop(name), np.float64)
