"""Batch norms of published networks, folded into the convolutions before them."""

from collections.abc import MutableMapping

import numpy as np

from gdistill import errors


def conv(
  state: MutableMapping[str, np.ndarray], conv: str, norm: str, epsilon: float, of: str
) -> dict:
  """{'kernel', 'bias'} of a bias-free convolution and its norm, which it takes out of `state`.

  gamma (y - mean) / sqrt(var + epsilon) + beta after y = conv(h), in float64. Torch's arrays are
  [O, I, H, W], Flax's [H, W, I, O]. `of` names the network in an error.
  """
  kernel = taken(state, f'{conv}.weight', of)
  gamma, beta, mean, var = (
    taken(state, f'{norm}.{name}', of) for name in ('weight', 'bias', 'running_mean', 'running_var')
  )
  state.pop(f'{norm}.num_batches_tracked', None)
  factor = gamma / np.sqrt(var + epsilon)
  return {
    'kernel': (kernel * factor[:, None, None, None]).transpose(2, 3, 1, 0).astype(np.float32),
    'bias': (beta - mean * factor).astype(np.float32),
  }


def taken(state: MutableMapping[str, np.ndarray], name: str, of: str) -> np.ndarray:
  """The array of that name in float64, taken out."""
  if name not in state:
    raise errors.ConfigError(f'{name!r} is missing: these are not weights of {of}')
  return np.asarray(state.pop(name), np.float64)
