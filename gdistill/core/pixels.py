"""Conversion between uint8 pixels and float images in [-1, 1]."""

import jax
from jax import numpy as jnp

from gdistill.core import types


def to_images(pixels: jax.Array) -> types.Images:
  """Returns pixels / 127.5 - 1 as float32."""
  return pixels.astype(jnp.float32) / 127.5 - 1.0


def finite(*images: types.Images) -> jax.Array:
  """Returns [B] bool: whether all values of example i are finite, in every array of `images`."""
  found = [jnp.isfinite(a).all(axis=tuple(range(1, a.ndim))) for a in images]
  return jnp.stack(found).all(axis=0)


def from_images(images: types.Images) -> jax.Array:
  """Returns round(127.5 (x + 1)) as uint8, where x is `images` clipped to [-1, 1]."""
  return jnp.round((jnp.clip(images, -1.0, 1.0) + 1.0) * 127.5).astype(jnp.uint8)
