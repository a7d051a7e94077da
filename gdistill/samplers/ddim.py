"""DDIM over the grid t = i/N: from noise to data (sample) or from data to noise (invert)."""

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
  start: jax.Array | int | None = None,
) -> types.Images:
  """Samples x from z_t, t = start/N, by DDIM over t = start/N, ..., 1/N, 0.

  The last step returns x_hat, and v_fn is called `start` times; `start` is N by default, which
  samples from z_1. `num_steps` and `start` may be traced values, so one compiled sampler serves
  every N.
  """
  start = num_steps if start is None else start
  return walk(v_fn, z, cond, w, num_steps, noise, start, lambda i: start - i, -1, project)


def invert(
  v_fn: types.VFn,
  x: types.Images,
  cond: types.Cond,
  w: types.PerExample,
  num_steps: jax.Array | int,
  noise: schedule.Schedule,
  project: types.Project | None = None,
  stop: jax.Array | int | None = None,
) -> types.Images:
  """Inverts x to z_t over t = 0, 1/N, ..., stop/N: DDIM with the grid reversed.

  v_fn is called `stop` times; `stop` is N by default, which inverts to z_1. The first call of v_fn
  is at t = 0, where x_hat equals x and is not projected.
  """
  stop = num_steps if stop is None else stop
  if project is not None:
    # process.ddim_projected divides by sin(phi), which is 0 at t = 0, so v_fn itself is projected.
    v_fn = _projected(v_fn, project)
  return walk(v_fn, x, cond, w, num_steps, noise, stop, lambda i: i, 1, None)


def walk(v_fn, z, cond, w, num_steps, noise, count, at, direction, project):
  """Takes `count` DDIM steps; step i goes from t = at(i) / N to (at(i) + direction) / N."""

  def step(i, z):
    logsnr_t = noise(grid_time(at(i), num_steps, z))
    logsnr_s = noise(grid_time(at(i) + direction, num_steps, z))
    return process.step(z, v_fn(z, logsnr_t, cond, w), logsnr_t, logsnr_s, project)

  return jax.lax.fori_loop(0, count, step, z)


def _projected(v_fn, project):
  """Returns a model whose estimate of x is project(x_hat), where x_hat is the estimate of v_fn."""

  def projected(z, logsnr, cond, w):
    return process.project_v(z, v_fn(z, logsnr, cond, w), logsnr, project)

  return projected


def grid_time(i: jax.Array | int, num_steps: jax.Array | int, z: types.Images) -> types.PerExample:
  """Returns t = i / N for each of B examples, exactly 0 at i = 0 and exactly 1 at i = N."""
  t = jnp.asarray(i, jnp.float32) / jnp.asarray(num_steps, jnp.float32)
  return jnp.full(z.shape[:1], t, jnp.float32)
