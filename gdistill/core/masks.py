"""Random masks, 1 where a picture is to be painted and 0 where it is known."""

import jax
from jax import numpy as jnp

from gdistill.core import types

RECTANGLES = 3  # at most
ALL, INVERTED = 0.1, 0.25  # how often everything is to be painted, and how often the complement


def condition(mask: jax.Array, left: types.Images) -> types.Images:
  """cond['extra'] of an inpainting network, [B, H, W, 1 + C]: the mask, then what it leaves.

  That is x (1 - mask) of an image; in latent space its encoding, since latents of what is known
  look into what is not. The order is Stable Diffusion's.
  """
  return jnp.concatenate([mask, left], axis=-1)


def smaller(mask: jax.Array, factor: int) -> jax.Array:
  """[B, H / factor, W / factor, 1]: pixel (factor i, factor j) of each, which is what torch's and
  so diffusers' nearest interpolation takes.
  """
  return mask[:, ::factor, ::factor]


def covering(mask: jax.Array, factor: int) -> jax.Array:
  """[B, H / factor, W / factor, 1]: 1 where any of the factor x factor pixels is 1."""
  count, height, width, _ = mask.shape
  blocks = mask.reshape(count, height // factor, factor, width // factor, factor, 1)
  return blocks.max(axis=(2, 4))


def random(keys: types.Keys, height: int, width: int) -> jax.Array:
  """[B, height, width, 1] of 0 and 1, a function of each key alone; never all 0.

  The union of 1 to 3 rectangles whose sides are uniform between a quarter and all of the picture's,
  placed anywhere within it; its complement for one in four; everything for one in ten, so that the
  same network also draws pictures of which nothing is known.
  """
  return jax.vmap(lambda key: _random(key, height, width))(keys)


def _random(key, height, width):
  key_sides, key_at, key_count, key_kind = jax.random.split(key, 4)
  size = jnp.array([[height, width]], jnp.float32)
  least = jnp.ceil(size / 4)
  sides = jnp.floor(least + jax.random.uniform(key_sides, (RECTANGLES, 2)) * (size - least + 1))
  at = jnp.floor(jax.random.uniform(key_at, (RECTANGLES, 2)) * (size - sides + 1))
  count = jax.random.randint(key_count, (), 1, RECTANGLES + 1)

  def within(length, axis):  # [RECTANGLES, length]
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
