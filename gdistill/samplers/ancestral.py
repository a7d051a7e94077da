"""Ancestral sampling: every step draws z_s from the posterior q(z_s | z_t, x_hat)."""

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
) -> types.Images:
  """Samples x from z_1 by ancestral steps over t = 1, ..., 1/N, 0, with N calls of v_fn.

  The last step goes to s = 0, where the posterior's variance is 0, and so returns x_hat. Source: Ho
  et al., arXiv 2006.11239; the variance is the smaller of the two variances in that paper.
  """

  def step(i, z):
    left = num_steps - i
    logsnr_t, logsnr_s = (noise(ddim.grid_time(left - j, num_steps, z)) for j in (0, 1))
    x_hat = process.x_from_v(z, v_fn(z, logsnr_t, cond, w), logsnr_t)
    x_hat = project(x_hat) if project is not None else x_hat
    mean, variance = process.posterior(z, x_hat, logsnr_t, logsnr_s)
    return mean + jnp.sqrt(variance) * image_noise.normal(keys, i + 1, z.shape[1:])

  return jax.lax.fori_loop(0, num_steps, step, z)
