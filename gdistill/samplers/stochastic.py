"""The stochastic sampler of the paper: DDIM steps of length 2/N, each with forward noise of 1/N."""

import jax
from jax import numpy as jnp

from gdistill.core import process
from gdistill.core import schedule
from gdistill.core import types
from gdistill.samplers import ddim
from gdistill.samplers import noise as image_noise


def sample(
  v_fn: types.VFn,
  z: types.Images,
  cond: types.Cond,
  w: types.PerExample,
  num_steps: jax.Array | int,
  noise: schedule.Schedule,
  keys: types.Keys,
  project: types.Project | None = None,
  start: jax.Array | int | None = None,
) -> types.Images:
  """Samples x from z_t: DDIM steps from t to k = t - 2/N, each with noise added from k to t - 1/N.

  The last step is a DDIM step from t = 1/N to 0, without noise after the step. v_fn is called
  `start` times, at t = start/N, ..., 1/N. By default `start` is N, so sampling starts from z_1.
  """
  start = num_steps if start is None else start

  def step(i, z):
    left = start - i  # this step starts at t = left / N
    at = (left, jnp.maximum(left - 2, 0), jnp.maximum(left - 1, 1))
    logsnr_t, logsnr_k, logsnr_s = (noise(ddim.grid_time(j, num_steps, z)) for j in at)
    z_k = process.step(z, v_fn(z, logsnr_t, cond, w), logsnr_t, logsnr_k, project)
    # The number of the noise counts the steps since t = 1, so that sampling from t = start/N adds
    # the same noise as the last `start` steps of sampling from t = 1.
    eps = image_noise.normal(keys, num_steps - left + 1, z.shape[1:])
    return jnp.where(left > 1, process.renoise(z_k, eps, logsnr_k, logsnr_s), z_k)

  return jax.lax.fori_loop(0, start, step, z)
