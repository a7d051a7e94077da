"""Projections of x_hat that a sampler may apply at each step: clipping, thresholding."""

from jax import numpy as jnp

from gdistill.core import types


def clip(x_hat: types.Images) -> types.Images:
  """Clips x_hat to [-1, 1], the range of pixels.

  `clip` must not be used on latents, because latents have no fixed range.
  """
  return jnp.clip(x_hat, -1.0, 1.0)


def unhidden(project: types.Project | None) -> types.Project | None:
  """Returns `project`, changed to return NaN where x_hat is infinite; None if `project` is None.

  Clipping would turn an infinite x_hat into an ordinary pixel, so that a picture drawn from it
  would look finite.
  """
  if project is None:
    return None
  return lambda x_hat: jnp.where(jnp.isinf(x_hat), jnp.nan, project(x_hat))


def dynamic_threshold(percentile: float = 0.995) -> types.Project:
  """Returns a projection that clips x_hat to [-s, s] and divides the result by s.

  For each image, s = max(1, q), where q is the quantile of |x_hat| at `percentile`, a fraction in
  [0, 1]. Source: Saharia et al., arXiv 2205.11487.
  """

  def project(x_hat):
    s = jnp.quantile(jnp.abs(x_hat).reshape(x_hat.shape[0], -1), percentile, axis=1)
    s = types.expand_like(jnp.maximum(s, 1.0), x_hat)
    return jnp.clip(x_hat, -s, s) / s

  return project
