"""Weighted squared error: omega(logsnr) |x - x_hat|^2, computed on v."""

import jax
from jax import numpy as jnp

from gdistill.core import process
from gdistill.core import types

# In units of x: an eighth of a grey level. Rounding of a target on the edge stays far below it.
_SAME = 1e-3


def weight_on_v(logsnr: types.PerExample, weight: str) -> types.PerExample:
  """omega(logsnr), which weighs the x-error, times sigma^2 = |x-error|^2 / |v-error|^2.

  'snr': SNR -> alpha^2; 'snr_trunc': max(SNR, 1) -> max(alpha^2, sigma^2);
  'snr_plus_one': SNR + 1 -> 1.
  """
  alpha2, sigma2 = jax.nn.sigmoid(logsnr), jax.nn.sigmoid(-logsnr)
  if weight == 'snr':
    return alpha2
  if weight == 'snr_trunc':
    return jnp.maximum(alpha2, sigma2)
  return jnp.ones_like(logsnr)


def weighted_mse(
  v_hat: types.Images, v: types.Images, logsnr: types.PerExample, weight: str
) -> types.PerExample:
  """[B]: weight_on_v(logsnr) times the mean over pixels of (v_hat - v)^2."""
  error = jnp.mean(jnp.square(v_hat - v), axis=tuple(range(1, v.ndim)))
  return weight_on_v(logsnr, weight) * error


def as_sampled(
  v_hat: types.Images,
  v: types.Images,
  z: types.Images,
  logsnr: types.PerExample,
  project: types.Project,
) -> tuple[types.Images, types.Images]:
  """(v_hat, v) for `weighted_mse` to compare what a sampler that projects x_hat will see.

  v becomes the v of project(x). Pixels where project(x_hat) is already that cost nothing: both lie
  beyond the same edge, say, and how far beyond is not to be learnt. Elsewhere the error is the
  plain one, so that an estimate beyond the wrong edge still finds its way back.
  """
  v = process.project_v(z, v, logsnr, project)
  x, x_hat = process.x_from_v(z, v, logsnr), process.x_from_v(z, v_hat, logsnr)
  return jnp.where(jnp.abs(project(x_hat) - x) < _SAME, v, v_hat), v
