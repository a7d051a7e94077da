"""Inpainting: where a mask is 1 a picture is painted, where it is 0 the picture is known."""

import jax
from jax import numpy as jnp

from gdistill.core import process
from gdistill.core import schedule
from gdistill.core import types
from gdistill.drawing import edit
from gdistill.samplers import ddim
from gdistill.samplers import noise as image_noise


def inpaint(
  v_fn: types.VFn,
  x: types.Images,
  cond: types.Cond,
  w: types.PerExample,
  num_steps: jax.Array | int,
  noise: schedule.Schedule,
  keys: types.Keys,
  project: types.Project | None = None,
  stochastic: bool = False,
) -> types.Images:
  """The sampler's walk from noise, by a network that is shown what is known: cond['extra'].

  x gives the shape alone: such a network draws the known region too. N calls of v_fn.
  """
  z = image_noise.start(keys, x.shape[1:])
  return edit.walk_on(v_fn, z, cond, w, num_steps, num_steps, noise, keys, project, stochastic)


def constrained(
  v_fn: types.VFn,
  x: types.Images,
  mask: jax.Array,
  cond: types.Cond,
  w: types.PerExample,
  num_steps: jax.Array | int,
  noise: schedule.Schedule,
  keys: types.Keys,
  project: types.Project | None = None,
  stochastic: bool = False,
) -> types.Images:
  """The walk of any network with x_hat = x imposed where `mask` [B, H, W, 1] is 0.

  The known region starts at alpha_1 x + sigma_1 eps. A step through x_hat = x keeps eps, and
  renoising exchanges part of it, so at every t of either sampler the region is alpha_t x plus noise
  of deviation sigma_t, and x at the end. What is painted learns of the known region by z_t alone:
  next to nothing in a walk of one step. N calls of v_fn.
  """
  painted = mask > 0

  def known(x_hat):
    return jnp.where(painted, x_hat if project is None else project(x_hat), x)

  eps = image_noise.start(keys, x.shape[1:])
  z = process.diffuse(x, eps, noise(ddim.grid_time(num_steps, num_steps, x)))
  z = jnp.where(painted, eps, z)
  return edit.walk_on(v_fn, z, cond, w, num_steps, num_steps, noise, keys, known, stochastic)


def composite(pixels: jax.Array, known: jax.Array, mask: jax.Array) -> jax.Array:
  """`known` bit for bit where the mask is 0, `pixels` elsewhere: [B, H, W, C] uint8."""
  return jnp.where(mask > 0, pixels, known)
