"""Type aliases for all of gdistill: array shapes, and the signature of a model."""

from collections.abc import Callable, Mapping

import jax
from jax import numpy as jnp

Images = jax.Array  # [B, H, W, C] float, images or latents, clean or noisy
PerExample = jax.Array  # [B] float: one number per example
Keys = jax.Array  # [B] typed JAX random keys, one per example
# Conditioning inputs by name: 'label' is int32 [B]; some networks also take 'text' or 'extra'.
Cond = Mapping[str, jax.Array]
# A model as a function of noisy images: (z, logsnr, cond, w) -> v_hat.
VFn = Callable[[Images, PerExample, Cond, PerExample], Images]
Project = Callable[[Images], Images]  # a function x_hat -> projected x_hat, e.g. clipping


def expand_like(per_example: PerExample, images: Images) -> jax.Array:
  """Reshapes [B] to [B, 1, 1, 1], to combine one number per example with images."""
  return jnp.reshape(per_example, per_example.shape + (1,) * (images.ndim - per_example.ndim))
