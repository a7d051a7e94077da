"""Noise for sampling, made from one seed for each image and therefore equal in every batch."""

import jax
from jax import numpy as jnp

from gdistill.core import types


def image_keys(seeds: jax.Array) -> types.Keys:
  """Returns [B] random keys, one for each image's seed; `seeds` is [B] uint32."""
  return jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))


def normal(keys: types.Keys, step: jax.Array | int, shape: tuple[int, ...]) -> types.Images:
  """Returns [B, *shape] standard normal noise, made from each image's key and the sampler step."""
  return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, step), shape))(keys)


def start(keys: types.Keys, shape: tuple[int, ...]) -> types.Images:
  """Returns z_1 ~ N(0, I), from which sampling starts.

  z_1 is the noise that `normal` returns for step 0; samplers add the noise of steps 1, 2, ...
  """
  return normal(keys, 0, shape)
