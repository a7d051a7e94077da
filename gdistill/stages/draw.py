"""What every stage draws: keys per example, w, and the noisy state z_t the networks are shown."""

import jax
from jax import numpy as jnp

from gdistill.core import masks
from gdistill.core import pixels
from gdistill.core import process
from gdistill.core import schedule
from gdistill.core import types


def example_keys(key: jax.Array, ids: jax.Array, count: int) -> list[types.Keys]:
  """`count` keys for each example, functions of (key, its place in the global batch) alone."""
  keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i), count))(ids)
  return [keys[:, j] for j in range(count)]


def uniform(keys: types.Keys, low: float = 0.0, high: float = 1.0) -> types.PerExample:
  """[B] ~ U[low, high); low == high gives that number."""
  return jax.vmap(lambda key: jax.random.uniform(key, minval=low, maxval=high))(keys)


def normal_like(keys: types.Keys, x: types.Images) -> types.Images:
  """[B, H, W, C] ~ N(0, I), image by image."""
  return jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)


def images(batch: dict, key: jax.Array | None, *, flip: bool) -> types.Images:
  """The batch's pixels as images in [-1, 1]; with `flip`, left and right exchanged for half."""
  x = pixels.to_images(batch['pixels'])
  return flipped(x, *example_keys(key, batch['id'], 1)) if flip else x


def latents(batch: dict, key: jax.Array, *, flip: bool) -> types.Images:
  """A draw of each posterior, mean + deviation eps; with `flip`, of the flipped picture for half.

  batch['latents'] [B, 2 flips, mean and (unless it is zero) deviation, h, w, c].
  """
  return _posterior(batch, *_chosen(batch, key, flip))


def masked_latents(
  batch: dict, key: jax.Array, key_mask: jax.Array, *, flip: bool
) -> tuple[types.Images, types.Images]:
  """(x as `latents` draws it, cond['extra'] for it: one of its masks).

  batch['masked'] [B, 2 flips, masks, h, w, 1 + c].
  """
  chosen, keys_eps = _chosen(batch, key, flip)
  (keys,) = example_keys(key_mask, batch['id'], 1)
  count = batch['masked'].shape[2]
  which = jax.vmap(lambda key: jax.random.randint(key, (), 0, count))(keys)
  extra = batch['masked'][jnp.arange(len(which)), chosen, which].astype(jnp.float32)
  return _posterior(batch, chosen, keys_eps), extra


def masked_images(x: types.Images, key: jax.Array, ids: jax.Array) -> types.Images:
  """cond['extra'] for images: a random mask, and what it leaves of x."""
  (keys,) = example_keys(key, ids, 1)
  mask = masks.random(keys, *x.shape[1:3])
  return masks.condition(mask, x * (1.0 - mask))


def _chosen(batch, key, flip):
  """(which flip of each example, keys for the rest)."""
  keys_flip, keys_eps = example_keys(key, batch['id'], 2)
  return jax.vmap(jax.random.bernoulli)(keys_flip).astype(jnp.int32) if flip else 0, keys_eps


def _posterior(batch, chosen, keys_eps):
  found = batch['latents'].astype(jnp.float32)
  found = found[jnp.arange(len(found)), chosen]
  mean = found[:, 0]
  return mean if found.shape[1] == 1 else mean + found[:, 1] * normal_like(keys_eps, mean)


def flipped(x: types.Images, keys: types.Keys) -> types.Images:
  """x with left and right exchanged, image by image, half of the time."""
  flip = jax.vmap(jax.random.bernoulli)(keys)
  return jnp.where(types.expand_like(flip, x), x[:, :, ::-1], x)


def noised_data(
  x: types.Images, eps: types.Images, t: types.PerExample, noise: schedule.Schedule
) -> types.Images:
  """z_t of the data, as the paper trains."""
  return process.diffuse(x, eps, noise(t))


def trajectory(
  teacher: types.VFn,
  z: types.Images,
  cond: types.Cond,
  w: types.PerExample,
  t: types.PerExample,
  stride: jax.Array | float,
  noise: schedule.Schedule,
  project: types.Project | None,
  inverted: bool = False,
) -> types.Images:
  """z_t on the teacher's own path from z_1: DDIM in steps of `stride`, the last one shorter.

  Each example stops at its own t. This is the state a sampler meets, where noised data is not.
  `inverted` begins from z_0, the data, and walks the other way.
  """

  def after(i):
    return jnp.minimum(i * stride, t) if inverted else jnp.maximum(1.0 - i * stride, t)

  def step(i, z):
    here, there = after(i), after(i + 1)
    logsnr = noise(here)
    v = teacher(z, logsnr, cond, w)
    if inverted and project is not None:  # at t = 0 the sine form of a step divides by 0
      moved = process.ddim(z, process.project_v(z, v, logsnr, project), logsnr, noise(there))
    else:
      moved = process.step(z, v, logsnr, noise(there), project)
    return jnp.where(types.expand_like(here != there, z), moved, z)

  # The small slack keeps rounding of t = i/N from adding a step of length 1e-8.
  furthest = jnp.max(t) if inverted else 1.0 - jnp.min(t)
  steps = jnp.ceil(furthest / stride - 1e-3).astype(jnp.int32)
  return jax.lax.stop_gradient(jax.lax.fori_loop(0, steps, step, z))
