"""Feature vectors of the noise level and of the guidance strength w, made of sinusoids."""

import jax
from jax import numpy as jnp


def phi_index(logsnr: jax.Array) -> jax.Array:
  """Returns the time index 1000 phi / (pi/2), where phi = arctan(exp(-logsnr/2)).

  phi runs over [0, pi/2], so the result is the time index at which a cosine schedule of 1,000 steps
  has this logsnr. Source: Salimans & Ho, arXiv 2202.00512 (the time input 'inv_cos').
  """
  return 1000.0 * jnp.arctan(jnp.exp(-0.5 * logsnr)) / (0.5 * jnp.pi)


def linear_time(logsnr: jax.Array) -> jax.Array:
  """Returns t = alpha / (alpha + sigma) on the path t x + (1 - t) eps; t = 0 is noise, t = 1 is
  data.
  """
  return jax.nn.sigmoid(0.5 * logsnr)


def w_features(w: jax.Array, dim: int, scale: float) -> jax.Array:
  """Returns [B, dim]: sinusoids of scale * w, sines first; w is [B].

  dim = 256 and scale = 1000 give the features of diffusers' guidance-scale embedding, whose
  argument guidance_scale - 1 equals w.
  """
  return sinusoids(scale * w, dim)


def sinusoids(
  a: jax.Array, dim: int, freq_shift: float = 1.0, cos_first: bool = False
) -> jax.Array:
  """concat(sin(a f_k), cos(a f_k)), f_k = exp(-k ln(10000) / (dim/2 - freq_shift)), k < dim/2.

  `freq_shift` = 0 with `cos_first` is the convention of ADM, latent diffusion and DiT.
  """
  half = dim // 2
  f = jnp.exp(-jnp.log(10_000.0) / (half - freq_shift) * jnp.arange(half, dtype=jnp.float32))
  angles = a.astype(jnp.float32)[:, None] * f[None, :]
  parts = (jnp.cos, jnp.sin) if cos_first else (jnp.sin, jnp.cos)
  return jnp.concatenate([part(angles) for part in parts], axis=1)
