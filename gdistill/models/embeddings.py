"""What turns numbers into vectors: noise level, guidance strength."""

import jax
from jax import numpy as jnp


def time_features(logsnr: jax.Array, dim: int) -> jax.Array:
  """[B] -> [B, dim]: sinusoids of 1000 phi / (pi/2), phi = arctan(exp(-logsnr/2)).

  Frequencies fall geometrically from 1 to 1e-4, sines first. phi runs over [0, pi/2], so the
  input is the thousand-step time index of a cosine schedule, whatever the schedule is.
  Source: Salimans & Ho, 2202.00512 (their 'inv_cos' input).
  """
  return sinusoids(1000.0 * jnp.arctan(jnp.exp(-0.5 * logsnr)) / (0.5 * jnp.pi), dim)


def w_features(w: jax.Array, dim: int, scale: float) -> jax.Array:
  """[B] -> [B, dim]: sinusoids of scale * w, sines first.

  dim = 256 and scale = 1000 are the features of diffusers' guidance-scale embedding, whose
  argument is guidance_scale - 1, our w.
  """
  return sinusoids(scale * w, dim)


def sinusoids(a: jax.Array, dim: int) -> jax.Array:
  """concat(sin(a f_k), cos(a f_k)), f_k = exp(-k ln(10000) / (dim/2 - 1)), k < dim/2."""
  half = dim // 2
  f = jnp.exp(-jnp.log(10_000.0) / (half - 1) * jnp.arange(half, dtype=jnp.float32))
  angles = a.astype(jnp.float32)[:, None] * f[None, :]
  return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)
