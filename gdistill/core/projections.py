"""Projections of x_hat that a sampler may apply before it steps."""

from jax import numpy as jnp

from gdistill.core import types


def clip(x_hat: types.Images) -> types.Images:
  """Into [-1, 1], the range of pixels. Latents have no such range and are never clipped."""
  return jnp.clip(x_hat, -1.0, 1.0)


def dynamic_threshold(percentile: float = 0.995) -> types.Project:
  """x_hat clipped to [-s, s] and divided by s, s = max(1, percentile of |x_hat|) per image.

  Source: Saharia et al., 2205.11487.
  """

  def project(x_hat):
    s = jnp.quantile(jnp.abs(x_hat).reshape(x_hat.shape[0], -1), percentile, axis=1)
    s = types.expand_like(jnp.maximum(s, 1.0), x_hat)
    return jnp.clip(x_hat, -s, s) / s

  return project
