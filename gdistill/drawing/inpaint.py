"""Inpainting: paints a picture where the mask is 1 and keeps the picture where the mask is 0."""

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
  """Samples from noise with an inpainting network, which gets the known region in cond['extra'].

  Only the shape of x is used, because an inpainting network draws the known region too. v_fn is
  called `num_steps` times.
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
  """Samples with any network, replacing x_hat by x at each step where `mask` [B, H, W, 1] is 0.

  Sampling starts from the noised picture alpha_1 x + sigma_1 eps in the known region, where `mask`
  is 0. In the known region, a DDIM step keeps the noise eps, because x_hat = x, and the stochastic
  sampler replaces a part of eps by new noise. With either sampler, the known region is therefore
  alpha_t x plus noise of standard deviation sigma_t at every t, and exactly x at the end. The
  painted region gets information about the known region from z_t alone; with a single step, z_t is
  almost pure noise and holds almost no information. v_fn is called `num_steps` times.
  """
  painted = mask > 0

  def known(x_hat):
    return jnp.where(painted, x_hat if project is None else project(x_hat), x)

  eps = image_noise.start(keys, x.shape[1:])
  z = process.diffuse(x, eps, noise(ddim.grid_time(num_steps, num_steps, x)))
  z = jnp.where(painted, eps, z)
  return edit.walk_on(v_fn, z, cond, w, num_steps, num_steps, noise, keys, known, stochastic)


def composite(pixels: jax.Array, known: jax.Array, mask: jax.Array) -> jax.Array:
  """Returns [B, H, W, C] uint8: exactly `known` where the mask is 0, `pixels` elsewhere."""
  return jnp.where(mask > 0, pixels, known)
