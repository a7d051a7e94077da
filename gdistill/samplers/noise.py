"""Noise that belongs to an image: image 17 is image 17 in a batch of 1 or 1,000."""

import jax
from jax import numpy as jnp

from gdistill.core import types


def image_keys(seeds: jax.Array) -> types.Keys:
  """[B] seeds (uint32) -> [B] keys."""
  return jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))


def normal(keys: types.Keys, step: jax.Array | int, shape: tuple[int, ...]) -> types.Images:
  """[B, *shape] standard normal noise, a function of each image's key and the step alone."""
  return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, step), shape))(keys)


def start(keys: types.Keys, shape: tuple[int, ...]) -> types.Images:
  """z_1 ~ N(0, I), the noise of step 0; the samplers draw theirs from step 1 on."""
  return normal(keys, 0, shape)
