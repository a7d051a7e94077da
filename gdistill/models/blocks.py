"""What U-Nets are made of: a residual block with scale-shift, self-attention, their input."""

from typing import Any

import jax
from flax import linen as nn
from jax import numpy as jnp

from gdistill import errors
from gdistill.core import types

zeros = nn.initializers.zeros_init()


class Norm(nn.Module):
  """(1 + scale) * (gamma * (h - mean) / sqrt(var + epsilon) + beta) + shift, in float32.

  Mean and variance are over the pixels and the channels of a group. `scale` and `shift` [B, C]
  are the conditioning, none by default. Everything that is not per pixel is gathered into one
  factor and one offset per image and channel first: the pixels are read once and written once.
  """

  groups: int
  epsilon: float = 1e-6

  @nn.compact
  def __call__(
    self, h: jax.Array, scale: jax.Array | None = None, shift: jax.Array | None = None
  ) -> jax.Array:
    h = h.astype(jnp.float32)
    b, _, _, c = h.shape
    gamma = self.param('scale', nn.initializers.ones_init(), (c,))[None]
    beta = self.param('bias', zeros, (c,))[None]

    def over_group(a):
      return a.mean(1).reshape(b, self.groups, -1).mean(-1)

    def per_channel(a):
      return jnp.repeat(a, c // self.groups, axis=1)

    # Flat pixels, because XLA's CPU fusion otherwise recomputes the gradients of several blocks
    # inside one loop: the gradient took 35 ms in place of 24.
    pixels = h.reshape(b, -1, c)
    mean = over_group(pixels)
    variance = over_group(jnp.square(pixels - per_channel(mean)[:, None]))
    factor = per_channel(jax.lax.rsqrt(variance + self.epsilon)) * gamma
    offset = beta - per_channel(mean) * factor
    if scale is not None:
      factor, offset = factor * (1.0 + scale), offset * (1.0 + scale)
    if shift is not None:
      offset += shift
    return h * factor[:, None, None, :] + offset[:, None, None, :]


class Dropout(nn.Module):
  """h with a share `rate` of its entries zero and the others divided by 1 - rate.

  The mask of an example is a function of (the rng 'dropout', the layer, its id): the same on any
  number of devices and in microbatches of any size. `ids` [B]; None drops nothing.
  """

  rate: float

  @nn.compact
  def __call__(self, h: jax.Array, ids: jax.Array | None) -> jax.Array:
    if ids is None or not self.rate:
      return h
    key = self.make_rng('dropout')
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(ids)
    kept = jax.vmap(lambda k: jax.random.bernoulli(k, 1.0 - self.rate, h.shape[1:]))(keys)
    return jnp.where(kept, h / (1.0 - self.rate), 0.0)


class ResBlock(nn.Module):
  """h + conv(dropout(silu(scale * norm(conv(silu(norm(h)))) + shift))), scale and shift from emb.

  `resample` 'down' averages 2x2 and 'up' repeats 2x2, on both the branch and the shortcut. The
  last convolution starts at zero, so that a fresh block is its shortcut.
  """

  channels: int
  groups: int
  dropout: float = 0.0
  resample: str | None = None
  dtype: Any = jnp.float32
  epsilon: float = 1e-6

  @nn.compact
  def __call__(self, h: jax.Array, emb: jax.Array, ids: jax.Array | None) -> jax.Array:
    skip = h
    h = nn.silu(Norm(self.groups, self.epsilon, name='norm1')(h)).astype(self.dtype)
    if self.resample is not None:
      h, skip = (resampled(a, self.resample) for a in (h, skip))
    h = nn.Conv(self.channels, (3, 3), dtype=self.dtype, name='conv1')(h)
    # Two layers and not the halves of one: XLA's CPU code for norm, scale-shift and silu took six
    # times as long with the slices of a joint layer in it.
    scale, shift = (
      nn.Dense(self.channels, dtype=self.dtype, name=name)(nn.silu(emb)).astype(jnp.float32)
      for name in ('emb_scale', 'emb_shift')
    )
    h = nn.silu(Norm(self.groups, self.epsilon, name='norm2')(h, scale, shift))
    h = Dropout(self.dropout, name='dropout')(h, ids).astype(self.dtype)
    h = nn.Conv(self.channels, (3, 3), dtype=self.dtype, kernel_init=zeros, name='conv2')(h)
    if skip.shape[-1] != self.channels:
      skip = nn.Dense(self.channels, dtype=self.dtype, name='shortcut')(skip)
    return skip + h


class Attention(nn.Module):
  """h + out(softmax(q k / sqrt(d)) v) over the pixels of one image; out starts at zero."""

  heads: int
  groups: int
  dtype: Any = jnp.float32
  epsilon: float = 1e-6

  @nn.compact
  def __call__(self, h: jax.Array) -> jax.Array:
    b, height, width, c = h.shape
    normed = Norm(self.groups, self.epsilon, name='norm')(h).astype(self.dtype)
    normed = normed.reshape(b, height * width, c)
    # No bias on k: it adds the same to all scores of a query, which softmax does not see, and Adam
    # would turn the rounding noise that is its gradient into steps.
    q, k, v = (
      nn.Dense(c, use_bias=name != 'k', dtype=self.dtype, name=name)(normed).reshape(
        b, -1, self.heads, c // self.heads
      )
      for name in ('q', 'k', 'v')
    )
    a = jax.nn.dot_product_attention(q, k, v).reshape(b, height, width, c)
    return h + nn.Dense(c, dtype=self.dtype, kernel_init=zeros, name='out')(a)


def resampled(h: jax.Array, how: str) -> jax.Array:
  """'down': 2x2 means. 'up': each pixel four times."""
  if how == 'up':
    return h.repeat(2, axis=1).repeat(2, axis=2)
  b, height, width, c = h.shape
  return h.reshape(b, height // 2, 2, width // 2, 2, c).mean(axis=(2, 4))


def with_extra(z: types.Images, cond: types.Cond, channels: int) -> types.Images:
  """z and behind it the `channels` of cond['extra']; ConfigError where it has another number."""
  found = cond['extra'].shape[-1] if 'extra' in cond else 0
  if found != channels:
    raise errors.ConfigError(
      f"cond['extra'] has {found} channels and the network's extra_channels is {channels}: give it "
      'what it was built for'
    )
  return jnp.concatenate([z, cond['extra']], axis=-1) if found else z
