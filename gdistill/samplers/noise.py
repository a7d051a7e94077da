"""Noise that depends on an image's seed alone: an image is the same in a batch of 1 or 1,000."""

import jax
from jax import numpy as jnp

from gdistill.core import types


def image_keys(seeds: jax.Array) -> types.Keys:
  """Returns [B] random keys, one for each image's seed; `seeds` is [B] uint32."""
  return jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))


def normal(keys: types.Keys, step: jax.Array | int, shape: tuple[int, ...]) -> types.Images:
  """Returns [B, *shape] standard normal noise, a function of each image's key and the step."""
  return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, step), shape))(keys)


def start(keys: types.Keys, shape: tuple[int, ...]) -> types.Images:
  """Returns z_1 ~ N(0, I): the noise of step 0. Samplers number later noise from step 1."""
  return normal(keys, 0, shape)
