"""DDIM: one walk over the grid i/N, from noise to data (sample) or from data to noise (invert)."""

import jax
from jax import numpy as jnp

from gdistill.core import process
from gdistill.core import schedule
from gdistill.core import types


def sample(
  v_fn: types.VFn,
  z: types.Images,
  cond: types.Cond,
  w: types.PerExample,
  num_steps: jax.Array | int,
  noise: schedule.Schedule,
  project: types.Project | None = None,
) -> types.Images:
  """z_1 -> x over t = 1, (N-1)/N, ..., 1/N, 0; the last step returns x_hat. N calls of v_fn.

  `num_steps` may be traced: one compiled sampler serves every N.
  """
  return walk(v_fn, z, cond, w, num_steps, noise, lambda i: num_steps - i, -1, project)


def invert(
  v_fn: types.VFn,
  x: types.Images,
  cond: types.Cond,
  w: types.PerExample,
  num_steps: jax.Array | int,
  noise: schedule.Schedule,
) -> types.Images:
  """x -> z_1 over t = 0, 1/N, ..., 1: the same walk with the grid reversed. N calls of v_fn."""
  return walk(v_fn, x, cond, w, num_steps, noise, lambda i: i, 1, None)


def walk(v_fn, z, cond, w, num_steps, noise, at, direction, project):
  """N DDIM steps; step i goes from grid point at(i) to its neighbour at(i) + direction."""

  def step(i, z):
    logsnr_t = noise(grid_time(at(i), num_steps, z))
    logsnr_s = noise(grid_time(at(i) + direction, num_steps, z))
    return process.step(z, v_fn(z, logsnr_t, cond, w), logsnr_t, logsnr_s, project)

  return jax.lax.fori_loop(0, num_steps, step, z)


def grid_time(i: jax.Array | int, num_steps: jax.Array | int, z: types.Images) -> types.PerExample:
  """t = i / N for every example, exactly 0 and 1 at the ends."""
  t = jnp.asarray(i, jnp.float32) / jnp.asarray(num_steps, jnp.float32)
  return jnp.full(z.shape[:1], t, jnp.float32)
