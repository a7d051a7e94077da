"""The paper's stochastic sampler: two steps' worth of jump, then one step's worth of noise back."""

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
  """At t > 1/N: jump to k = t - 2/N, then noise up to s = t - 1/N; at t = 1/N: jump to 0.

  `start` calls of v_fn at t = start/N, ..., 1/N; from z_1 by default, in N calls.
  """
  start = num_steps if start is None else start

  def step(i, z):
    left = start - i  # t = left / N, down to 1/N
    at = (left, jnp.maximum(left - 2, 0), jnp.maximum(left - 1, 1))
    logsnr_t, logsnr_k, logsnr_s = (noise(ddim.grid_time(j, num_steps, z)) for j in at)
    z_k = process.step(z, v_fn(z, logsnr_t, cond, w), logsnr_t, logsnr_k, project)
    # The draws are numbered from t = 1: a walk that starts later is the tail of a whole one.
    eps = image_noise.normal(keys, num_steps - left + 1, z.shape[1:])
    return jnp.where(left > 1, process.renoise(z_k, eps, logsnr_k, logsnr_s), z_k)

  return jax.lax.fori_loop(0, start, step, z)
