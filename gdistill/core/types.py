"""The types everything speaks in: what an array is, and what a model is."""

from collections.abc import Callable, Mapping

import jax
from jax import numpy as jnp

Images = jax.Array  # [B, H, W, C] float, images or latents, clean or noisy
PerExample = jax.Array  # [B] float: one number per example
Keys = jax.Array  # [B] typed random keys, one per example
Cond = Mapping[str, jax.Array]  # {'label': [B] int32} and what else a network is conditioned on
VFn = Callable[[Images, PerExample, Cond, PerExample], Images]  # (z, logsnr, cond, w) -> v_hat
Project = Callable[[Images], Images]  # x_hat -> x_hat, e.g. clipping


def expand_like(per_example: PerExample, images: Images) -> jax.Array:
  """[B] -> [B, 1, 1, 1]: the only way a per-example number meets an image."""
  return jnp.reshape(per_example, per_example.shape + (1,) * (images.ndim - per_example.ndim))
