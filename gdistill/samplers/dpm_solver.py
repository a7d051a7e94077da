"""DPM-Solver++(2M): a second-order multistep solver, the usual alternative to distillation."""

import jax
from jax import numpy as jnp

from gdistill.core import process
from gdistill.core import schedule
from gdistill.core import types
from gdistill.samplers import ddim


def sample(
  v_fn: types.VFn,
  z: types.Images,
  cond: types.Cond,
  w: types.PerExample,
  num_steps: jax.Array | int,
  noise: schedule.Schedule,
  project: types.Project | None = None,
) -> types.Images:
  """Samples x from z_1 by steps from z_t to z_s, with N calls of v_fn, at t = 1, ..., 1/N.

  z_s = (sigma_s/sigma_t) z_t - alpha_s (e^(-h) - 1) D, where h = (logsnr_s - logsnr_t) / 2 and
  D = x_hat + h / (2 h_before) (x_hat - x_hat_before), with h_before and x_hat_before from the
  previous step. The first and the last step are first order, which means D = x_hat. At the last
  step h is infinite, so the step returns x_hat. Source: Lu et al., arXiv 2211.01095, algorithm 2.
  """

  def step(i, carry):
    z, before, logsnr_before = carry
    left = num_steps - i
    logsnr_t, logsnr_s = (noise(ddim.grid_time(left - j, num_steps, z)) for j in (0, 1))
    x_hat = process.x_from_v(z, v_fn(z, logsnr_t, cond, w), logsnr_t)
    x_hat = project(x_hat) if project is not None else x_hat
    inside = (i > 0) & (left > 1)
    # At the first and the last step, h / h_before is not finite; ratio = 0 then gives D = x_hat.
    ratio = jnp.where(inside, logsnr_s - logsnr_t, 0.0) / jnp.where(
      inside, logsnr_t - logsnr_before, 1.0
    )
    data = x_hat + types.expand_like(0.5 * ratio, z) * (x_hat - before)
    alpha_s, sigma_s = schedule.alpha_sigma(logsnr_s)
    _, sigma_t = schedule.alpha_sigma(logsnr_t)
    keep = types.expand_like(sigma_s / sigma_t, z)
    gain = types.expand_like(-alpha_s * jnp.expm1(0.5 * (logsnr_t - logsnr_s)), z)
    return keep * z + gain * data, x_hat, logsnr_t

  first = noise(ddim.grid_time(num_steps, num_steps, z))
  return jax.lax.fori_loop(0, num_steps, step, (z, jnp.zeros_like(z), first))[0]
