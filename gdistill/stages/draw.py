"""Random inputs of all training objectives: keys per example, w, clean x, and the noisy z_t."""

import jax
from jax import numpy as jnp

from gdistill.core import masks
from gdistill.core import pixels
from gdistill.core import process
from gdistill.core import schedule
from gdistill.core import types


def example_keys(key: jax.Array, ids: jax.Array, count: int) -> list[types.Keys]:
  """Returns `count` arrays of [B] keys; a key depends on `key` and the example's id alone.

  `ids` [B] are the positions of the examples in the global batch.
  """
  keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i), count))(ids)
  return [keys[:, j] for j in range(count)]


def uniform(keys: types.Keys, low: float = 0.0, high: float = 1.0) -> types.PerExample:
  """Samples [B] numbers from U[low, high); if low == high, every number is `low`."""
  return jax.vmap(lambda key: jax.random.uniform(key, minval=low, maxval=high))(keys)


def normal_like(keys: types.Keys, x: types.Images) -> types.Images:
  """Samples [B, H, W, C] from N(0, I), with one key for each image."""
  return jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)


def images(batch: dict, key: jax.Array | None, *, flip: bool) -> types.Images:
  """Returns batch['pixels'] in [-1, 1]; `flip` mirrors each image with probability 1/2."""
  x = pixels.to_images(batch['pixels'])
  return flipped(x, *example_keys(key, batch['id'], 1)) if flip else x


def latents(batch: dict, key: jax.Array, *, flip: bool) -> types.Images:
  """Samples x = mean + deviation eps from each example's posterior over latents.

  batch['latents'] [B, 2 flips, 2, h, w, c] holds the posterior's mean and deviation, once for the
  picture and once for the mirrored picture. If the deviation is zero in all examples, the third
  axis of batch['latents'] has length 1 and holds only the posterior's mean. With `flip`, each
  example takes the mirror image with probability 1/2.
  """
  return _posterior(batch, *_chosen(batch, key, flip))


def masked_latents(
  batch: dict, key: jax.Array, key_mask: jax.Array, *, flip: bool
) -> tuple[types.Images, types.Images]:
  """Returns (x, cond['extra']): x as in `latents`; a mask with the masked picture's latents.

  batch['masked'] [B, 2 flips, masks, h, w, 1 + c] holds several masks for each example, each mask
  with the c channels of the masked picture's latents; one of the masks is chosen at random.
  """
  chosen, keys_eps = _chosen(batch, key, flip)
  (keys,) = example_keys(key_mask, batch['id'], 1)
  count = batch['masked'].shape[2]
  which = jax.vmap(lambda key: jax.random.randint(key, (), 0, count))(keys)
  extra = batch['masked'][jnp.arange(len(which)), chosen, which].astype(jnp.float32)
  return _posterior(batch, chosen, keys_eps), extra


def masked_images(x: types.Images, key: jax.Array, ids: jax.Array) -> types.Images:
  """Returns cond['extra'] for images: a random mask, and the part of x where the mask is 0."""
  (keys,) = example_keys(key, ids, 1)
  mask = masks.random(keys, *x.shape[1:3])
  return masks.condition(mask, x * (1.0 - mask))


def _chosen(batch, key, flip):
  """Returns (flips, keys): flips is 1 for mirrored examples, keys are random keys for eps.

  Without `flip`, flips is 0 for all examples.
  """
  keys_flip, keys_eps = example_keys(key, batch['id'], 2)
  return jax.vmap(jax.random.bernoulli)(keys_flip).astype(jnp.int32) if flip else 0, keys_eps


def _posterior(batch, chosen, keys_eps):
  found = batch['latents'].astype(jnp.float32)
  found = found[jnp.arange(len(found)), chosen]
  mean = found[:, 0]
  return mean if found.shape[1] == 1 else mean + found[:, 1] * normal_like(keys_eps, mean)


def flipped(x: types.Images, keys: types.Keys) -> types.Images:
  """Mirrors each image left to right with probability 1/2."""
  flip = jax.vmap(jax.random.bernoulli)(keys)
  return jnp.where(types.expand_like(flip, x), x[:, :, ::-1], x)


def noised_data(
  x: types.Images, eps: types.Images, t: types.PerExample, noise: schedule.Schedule
) -> types.Images:
  """Returns z_t = alpha x + sigma eps at time t, the noised data that the paper trains on."""
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
  """Returns z_t, sampled with the teacher from z = z_1 by DDIM steps of length `stride` in time.

  The path of each example ends at the example's own t, with a shorter last step. A path is used,
  because a sampler calls the network at states on a path, and noised data may differ from states on
  a path. With `inverted`, the path starts from z = z_0, the data, and goes towards noise.
  """

  def after(i):
    return jnp.minimum(i * stride, t) if inverted else jnp.maximum(1.0 - i * stride, t)

  def step(i, z):
    here, there = after(i), after(i + 1)
    logsnr = noise(here)
    v = teacher(z, logsnr, cond, w)
    if inverted and project is not None:  # process.step would divide by 0 at t = 0
      moved = process.ddim(z, process.project_v(z, v, logsnr, project), logsnr, noise(there))
    else:
      moved = process.step(z, v, logsnr, noise(there), project)
    return jnp.where(types.expand_like(here != there, z), moved, z)

  # 1e-3 is subtracted, because rounding of t = i/N could otherwise add a step of length 1e-8.
  furthest = jnp.max(t) if inverted else 1.0 - jnp.min(t)
  steps = jnp.ceil(furthest / stride - 1e-3).astype(jnp.int32)
  return jax.lax.stop_gradient(jax.lax.fori_loop(0, steps, step, z))
