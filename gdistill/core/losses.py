"""The weighted squared error omega(logsnr) |x - x_hat|^2, computed from v and v_hat."""

import jax
from jax import numpy as jnp

from gdistill.core import process
from gdistill.core import types

# as_sampled treats two values of x that differ by less than 1e-3 as equal. 1e-3 is an eighth of a
# grey level, and more than the rounding error of a target on the edge of the projection's range.
_SAME = 1e-3


def weight_on_v(logsnr: types.PerExample, weight: str) -> types.PerExample:
  """Returns omega sigma^2, because omega |x - x_hat|^2 = omega sigma^2 |v - v_hat|^2.

  `weight` is the name of the weight omega of the error in x:
    'snr'           means omega = SNR, so the function returns alpha^2.
    'snr_trunc'     means omega = max(SNR, 1), so the function returns max(alpha^2, sigma^2).
    'snr_plus_one'  means omega = SNR + 1, so the function returns 1.
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
  """Returns [B]: weight_on_v(logsnr) times the mean of (v_hat - v)^2 over pixels and channels."""
  error = jnp.mean(jnp.square(v_hat - v), axis=tuple(range(1, v.ndim)))
  return weight_on_v(logsnr, weight) * error


def as_sampled(
  v_hat: types.Images,
  v: types.Images,
  z: types.Images,
  logsnr: types.PerExample,
  project: types.Project,
) -> tuple[types.Images, types.Images]:
  """Returns (v_hat, v) for `weighted_mse`, changed for a sampler that projects (clips) x_hat.

  The returned v is computed from project(x), the projected target. A pixel has no error if
  `project` changes the pixel's x_hat to project(x): the sampler projects x_hat too, so the student
  need not learn how far x lies beyond the edge of the projection's range. A pixel whose
  project(x_hat) differs from project(x) keeps the error of the unprojected x_hat, so that an x_hat
  beyond the wrong edge of the range still has a gradient.
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
  """Returns [B]: `weighted_mse` of a student's v_hat and the target v, divided by (1 + w)^w_power.

  The target v is under stop_gradient. Meng et al., arXiv 2210.03142, use `w_power` = 0. If
  `project` is given, `as_sampled` first changes v_hat and v for a sampler that projects x_hat.
  """
  if project is not None:
    v_hat, v = as_sampled(v_hat, v, z, logsnr, project)
  error = weighted_mse(v_hat, jax.lax.stop_gradient(v), logsnr, weight)
  return error / (1.0 + w) ** w_power
