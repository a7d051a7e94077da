"""Inpainting masks: 1 where the picture is to be painted, 0 where the picture is known."""

import jax
from jax import numpy as jnp

from gdistill.core import types

RECTANGLES = 3  # largest number of rectangles in a mask
ALL, INVERTED = 0.1, 0.25  # probability of a mask that is 1 everywhere, and of an inverted mask


def condition(mask: jax.Array, left: types.Images) -> types.Images:
  """Returns cond['extra'] [B, H, W, 1 + C], an inpainting network's input: the mask, then `left`.

  `left` is the known part of the picture: x (1 - mask) in pixel space, or the latent of the masked
  picture in latent space. Masking the latent and not the picture would leak hidden pixels, because
  a latent also depends on pixels around the position of the latent. The mask is the first channel,
  as in Stable Diffusion's inpainting network.
  """
  return jnp.concatenate([mask, left], axis=-1)


def smaller(mask: jax.Array, factor: int) -> jax.Array:
  """Returns every `factor`-th row and column of `mask`, [B, H / factor, W / factor, 1].

  Torch's nearest interpolation, which diffusers uses for masks, also takes every `factor`-th pixel.
  """
  return mask[:, ::factor, ::factor]


def covering(mask: jax.Array, factor: int) -> jax.Array:
  """Returns [B, H / factor, W / factor, 1]: the maximum of each factor x factor block of `mask`."""
  count, height, width, _ = mask.shape
  blocks = mask.reshape(count, height // factor, factor, width // factor, factor, 1)
  return blocks.max(axis=(2, 4))


def random(keys: types.Keys, height: int, width: int) -> jax.Array:
  """Returns masks [B, height, width, 1] of 0 and 1; each mask depends only on the key of that mask.

  A mask is the union of 1 to 3 rectangles, placed uniformly within the picture. The height of a
  rectangle is uniform between a quarter of the picture's height and the full height, and the width
  likewise. One mask in four is inverted, so that the rectangles are the known part. One mask in ten
  is 1 everywhere, so that the network also learns to draw a picture from nothing. No mask is 0
  everywhere.
  """
  return jax.vmap(lambda key: _random(key, height, width))(keys)


def _random(key, height, width):
  key_sides, key_at, key_count, key_kind = jax.random.split(key, 4)
  size = jnp.array([[height, width]], jnp.float32)
  least = jnp.ceil(size / 4)
  sides = jnp.floor(least + jax.random.uniform(key_sides, (RECTANGLES, 2)) * (size - least + 1))
  at = jnp.floor(jax.random.uniform(key_at, (RECTANGLES, 2)) * (size - sides + 1))
  count = jax.random.randint(key_count, (), 1, RECTANGLES + 1)

  # Returns [RECTANGLES, length] bool: True at the positions along the axis that a rectangle covers.
  def within(length, axis):
    i = jnp.arange(length, dtype=jnp.float32)[None]
    return (i >= at[:, axis, None]) & (i < (at + sides)[:, axis, None])

  inside = within(height, 0)[:, :, None] & within(width, 1)[:, None, :]
  inside &= jnp.arange(RECTANGLES)[:, None, None] < count
  mask = jnp.any(inside, axis=0)
  kind = jax.random.uniform(key_kind)
  inverted = (kind < INVERTED) & ~jnp.all(mask)
  everything = kind >= 1.0 - ALL
  mask = jnp.where(inverted, ~mask, mask) | everything
  return mask[:, :, None].astype(jnp.float32)
