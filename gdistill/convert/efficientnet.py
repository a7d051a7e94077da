"""Converts published weights of EfficientNet-Lite0 to Flax parameters of models.efficientnet."""

import re
from collections.abc import Mapping

import numpy as np

from gdistill import errors
from gdistill.convert import folding
from gdistill.models import efficientnet

_OF = 'EfficientNet-Lite0'
# Published convolution -> (layer of models.efficientnet, batch norm after the convolution).
_ENDS = {'_conv_stem': ('stem', '_bn0'), '_conv_head': ('head', '_bn1')}
_IN_BLOCK = {
  '_expand_conv': ('expand', '_bn0'),
  '_depthwise_conv': ('depthwise', '_bn1'),
  '_project_conv': ('project', '_bn2'),
}


def params_from(state: Mapping[str, np.ndarray]) -> dict:
  """Returns Flax parameters from {'_blocks.0._depthwise_conv.weight': [O, I, H, W], ...}.

  Raises ConfigError with the name of the first array that is missing from `state`, or that
  EfficientNet-Lite0 does not have.
  """
  state, params, epsilon = dict(state), {}, efficientnet.BATCH_NORM_EPSILON
  for conv, (ours, norm) in _ENDS.items():
    params[ours] = folding.conv(state, conv, norm, epsilon, _OF)
  for name in [n for n in state if n.startswith('_blocks.')]:
    found = re.fullmatch(r'_blocks\.(\d+)\.(_\w+_conv)\.weight', name)
    if found and found[2] in _IN_BLOCK:
      block, (ours, norm) = f'_blocks.{found[1]}', _IN_BLOCK[found[2]]
      params[f'block_{found[1]}_{ours}'] = folding.conv(
        state, f'{block}.{found[2]}', f'{block}.{norm}', epsilon, _OF
      )
  params['logits'] = {
    'kernel': folding.taken(state, '_fc.weight', _OF).T.astype(np.float32),
    'bias': folding.taken(state, '_fc.bias', _OF).astype(np.float32),
  }
  if state:
    raise errors.ConfigError(
      f'{min(state)!r} is not an array of {_OF}; use a file with the weights of {_OF} alone'
    )
  return params
