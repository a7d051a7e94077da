"""Blocks that U-Nets share: group norm, dropout, residual block, self-attention, resampling."""

from typing import Any

import jax
from flax import linen as nn
from jax import numpy as jnp

from gdistill import errors
from gdistill.core import types
from gdistill.models import attention

zeros = nn.initializers.zeros_init()


class Norm(nn.Module):
  """(1 + scale) * (gamma * (h - mean) / sqrt(var + epsilon) + beta) + shift, in float32.

  Mean and variance are taken over the pixels and channels of each group of channels. `scale` and
  `shift` [B, C] condition the norm; `scale` None or `shift` None counts as 0. All terms that are
  equal for every pixel are first combined into a factor and an offset [B, C], so that normalising
  reads and writes each pixel once.
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

    # Pixels are flattened because XLA's CPU fusion otherwise recomputes the gradients of several
    # blocks inside one loop: the gradient took 35 ms without flattening and 24 ms with flattening.
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
  """Dropout with a mask for each example: values of h become zero with probability `rate`, or are
  divided by 1 - rate.

  The mask of an example is a function of (the rng 'dropout', the layer, the example's id), so the
  mask is the same on any number of devices and in microbatches of any size. `ids` [B] are the
  examples' ids; `ids` None turns dropout off.
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
  """h + conv(dropout(silu((1 + scale) norm(conv(silu(norm(h)))) + shift))).

  `scale` and `shift` are dense layers of silu(emb). `resample` 'down' averages 2x2 pixels and 'up'
  repeats each pixel 2x2, on the residual branch and on the shortcut. The weights of the last
  convolution start at zero, so a freshly initialised block returns only the shortcut's value.
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
    # Scale and shift are two dense layers, not halves of one layer: with slices of a joint layer,
    # XLA's CPU code for norm, scale-shift and silu took six times as long.
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
  """h + out(softmax(q k / sqrt(d)) v) over the pixels of one image; layer `out` starts at zero."""

  heads: int
  groups: int
  dtype: Any = jnp.float32
  epsilon: float = 1e-6

  @nn.compact
  def __call__(self, h: jax.Array) -> jax.Array:
    b, height, width, c = h.shape
    normed = Norm(self.groups, self.epsilon, name='norm')(h).astype(self.dtype)
    normed = normed.reshape(b, height * width, c)
    # k has no bias: a bias adds the same number to all scores of a query, which softmax cancels.
    # The gradient of a bias of k is rounding noise, which Adam would turn into steps.
    q, k, v = (
      nn.Dense(c, use_bias=name != 'k', dtype=self.dtype, name=name)(normed).reshape(
        b, -1, self.heads, c // self.heads
      )
      for name in ('q', 'k', 'v')
    )
    a = attention.attention(q, k, v).reshape(b, height, width, c)
    return h + nn.Dense(c, dtype=self.dtype, kernel_init=zeros, name='out')(a)


def resampled(h: jax.Array, how: str) -> jax.Array:
  """Returns h at half the resolution (`how` 'down': 2x2 means) or at twice the resolution (`how`
  'up': 2x2 repeats).
  """
  if how == 'up':
    return h.repeat(2, axis=1).repeat(2, axis=2)
  b, height, width, c = h.shape
  return h.reshape(b, height // 2, 2, width // 2, 2, c).mean(axis=(2, 4))


def with_extra(z: types.Images, cond: types.Cond, channels: int) -> types.Images:
  """Returns z with the channels of cond['extra'] appended; if `channels` is 0, cond['extra'] may be
  absent.

  Raises ConfigError if cond['extra'] has another number of channels than `channels`.
  """
  found = cond['extra'].shape[-1] if 'extra' in cond else 0
  if found != channels:
    raise errors.ConfigError(
      f"cond['extra'] has {found} channels and the network's extra_channels is {channels}; pass "
      f"cond['extra'] with {channels} channels, or build the network with extra_channels={found}"
    )
  return jnp.concatenate([z, cond['extra']], axis=-1) if found else z
