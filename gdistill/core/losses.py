"""Weighted squared error: omega(logsnr) |x - x_hat|^2, computed on v."""

import jax
from jax import numpy as jnp

from gdistill.core import process
from gdistill.core import types

_SAME = 1e-3  # of x, an eighth of a grey level: rounding of a target on an edge stays below it


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
  """(v_hat, v) for `weighted_mse`, where a sampler will project x_hat anyway.

  v becomes the v of project(x). Pixels that the projection moves onto that target cost nothing:
  both lie beyond the same edge, and how far beyond is not to be learnt. All others have the plain
  error of the unprojected x_hat, so that one beyond the wrong edge finds its way back.
  """
  v = process.project_v(z, v, logsnr, project)
  x, x_hat = process.x_from_v(z, v, logsnr), process.x_from_v(z, v_hat, logsnr)
  projected = project(x_hat)
  free = (projected != x_hat) & (jnp.abs(projected - x) < _SAME)
  return jnp.where(free, v, v_hat), v


def distilled(
  v_hat: types.Images,
  v: types.Images,
  z: types.Images,
  logsnr: types.PerExample,
  w: types.PerExample,
  weight: str,
  w_power: float,
  project: types.Project | None,
) -> types.PerExample:
  """[B]: omega |v - v_hat|^2 / (1 + w)^p of a student and its target v, which learns nothing.

  p = `w_power`: 0 is the paper. With `project` the errors are those of `as_sampled`.
  """
  if project is not None:
    v_hat, v = as_sampled(v_hat, v, z, logsnr, project)
  error = weighted_mse(v_hat, jax.lax.stop_gradient(v), logsnr, weight)
  return error / (1.0 + w) ** w_power
