"""Weighted squared error: omega(logsnr) |x - x_hat|^2, computed on v."""

import jax
from jax import numpy as jnp

from gdistill.core import types


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
