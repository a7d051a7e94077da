"""Diffusion transformers DiT and SiT: patches, adaLN-zero blocks, fixed position embeddings."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax import numpy as jnp

from gdistill.core import types
from gdistill.models import attention
from gdistill.models import blocks
from gdistill.models import embeddings

SINUSOIDS = 256


class DiT(nn.Module):
  """(z [B, H, W, C], logsnr [B], cond, w [B]) -> [B, H, W, C] in float32.

  `time` maps logsnr to the network's time input, whose sinusoids are embedded: the timestep index
  for networks of a discrete schedule, or t for SiT. Label -1 in cond['label'] is the null class,
  the last row of the label table. With `learned_sigma` the network computes 2C output channels and
  returns the first C. `w_features` > 0 makes a network that takes w: the Fourier features of w
  enter through a bias-free projection, which starts at zero, and are added to the sinusoids of
  time. DiT ignores the argument `ids`, which other denoisers use for dropout, because DiT has no
  dropout. `remat` stores only the input of each block, and the backward pass recomputes the block.
  `freq_shift`, a parameter of the sinusoids of time, is 0 in the published DiTs and 1 in diffusers'
  implementation of DiT. Sources: Peebles & Xie, arXiv 2212.09748 (DiT); Ma et al., arXiv 2401.08740
  (SiT).
  """

  width: int
  depth: int
  heads: int
  patch: int
  num_classes: int
  mlp_ratio: int = 4
  learned_sigma: bool = False
  time: Callable[[types.PerExample], types.PerExample] = embeddings.phi_index
  freq_shift: float = 0.0
  w_features: int = 0
  w_scale: float = 1000.0
  dtype: Any = jnp.float32
  remat: bool = False

  @nn.compact
  def __call__(
    self,
    z: types.Images,
    logsnr: types.PerExample,
    cond: types.Cond,
    w: types.PerExample,
    ids: jax.Array | None = None,
  ) -> types.Images:
    b, height, width, c = z.shape
    rows, columns, patch = height // self.patch, width // self.patch, (self.patch, self.patch)
    emb = nn.silu(self._embed(logsnr, cond, w))
    h = nn.Conv(self.width, patch, patch, dtype=self.dtype, name='patch')(z.astype(self.dtype))
    places = positions(rows, columns, self.width)[None]
    h = h.reshape(b, rows * columns, self.width) + places.astype(self.dtype)
    block = nn.remat(Block) if self.remat else Block
    for i in range(self.depth):
      h = block(self.heads, self.mlp_ratio, self.dtype, name=f'block{i}')(h, emb)
    modulation = nn.Dense(2 * self.width, kernel_init=blocks.zeros, name='final_modulation')(emb)
    shift, scale = jnp.split(modulation, 2, axis=1)
    out = 2 * c if self.learned_sigma else c
    h = nn.Dense(self.patch**2 * out, kernel_init=blocks.zeros, name='final')(
      normed(h, scale, shift)
    )
    h = h.reshape(b, rows, columns, *patch, out).transpose(0, 1, 3, 2, 4, 5)
    return h.reshape(b, height, width, out)[..., :c]

  def _embed(self, logsnr, cond, w):
    emb = embeddings.sinusoids(self.time(logsnr), SINUSOIDS, self.freq_shift, cos_first=True)
    if self.w_features:
      features = embeddings.w_features(w, self.w_features, self.w_scale)
      emb += nn.Dense(SINUSOIDS, use_bias=False, kernel_init=blocks.zeros, name='w_proj')(features)
    normal = nn.initializers.normal(0.02)
    emb = nn.Dense(self.width, kernel_init=normal, name='time0')(emb)
    emb = nn.Dense(self.width, kernel_init=normal, name='time1')(nn.silu(emb))
    row = jnp.where(cond['label'] < 0, self.num_classes, cond['label'])
    return emb + nn.Embed(self.num_classes + 1, self.width, embedding_init=normal, name='label')(
      row
    )


class Block(nn.Module):
  """h + g_a attention(m_a(h)), then h + g_m mlp(m_m(h)); m(h) = (1 + scale) norm(h) + shift.

  Shifts, scales and gates g are linear in `emb` [B, width] and start at zero, so a freshly
  initialised block is the identity. `h` is [B, patches, width].
  """

  heads: int
  mlp_ratio: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, h: jax.Array, emb: jax.Array) -> jax.Array:
    b, count, width = h.shape
    modulation = nn.Dense(6 * width, dtype=self.dtype, kernel_init=blocks.zeros, name='modulation')
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = jnp.split(modulation(emb), 6, axis=1)

    a = normed(h, scale_a, shift_a).astype(self.dtype)
    # k has no bias, because softmax would cancel a bias of k; see blocks.Attention.
    q, k, v = (
      nn.Dense(width, use_bias=name != 'k', dtype=self.dtype, name=name)(a).reshape(
        b, count, self.heads, width // self.heads
      )
      for name in 'qkv'
    )
    a = attention.attention(q, k, v).reshape(b, count, width)
    h += gate_a[:, None] * nn.Dense(width, dtype=self.dtype, name='out')(a)

    m = normed(h, scale_m, shift_m).astype(self.dtype)
    m = nn.gelu(nn.Dense(self.mlp_ratio * width, dtype=self.dtype, name='mlp0')(m), True)
    return h + gate_m[:, None] * nn.Dense(width, dtype=self.dtype, name='mlp1')(m)


def normed(h: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
  """(1 + scale) (h - mean) / sqrt(var + 1e-6) + shift over the last axis, in float32.

  `h` is [B, patches, width]; `scale` and `shift` are [B, width].
  """
  h = h.astype(jnp.float32)
  h -= h.mean(-1, keepdims=True)
  h *= jax.lax.rsqrt(jnp.square(h).mean(-1, keepdims=True) + 1e-6)
  return h * (1.0 + scale.astype(jnp.float32))[:, None] + shift.astype(jnp.float32)[:, None]


def positions(rows: int, columns: int, dim: int) -> np.ndarray:
  """Returns [rows * columns, dim], position embeddings: sinusoids of the column, then of the row.

  The sinusoids of a coordinate are dim/4 sines, then dim/4 cosines, at the frequencies 10000^(-k /
  (dim/4)), k < dim/4.
  """
  f = 10_000.0 ** (-np.arange(dim // 4) / (dim / 4))
  row, column = np.meshgrid(np.arange(rows), np.arange(columns), indexing='ij')
  parts = [part(a.reshape(-1, 1) * f) for a in (column, row) for part in (np.sin, np.cos)]
  return np.concatenate(parts, axis=1).astype(np.float32)


def as_teacher(params: Any, dtype: Any) -> Any:
  """Casts to `dtype` the parameters of layers that compute in `dtype`; outputs stay bit-identical.

  Parameters of the embedding and output layers stay float32, because these layers compute in
  float32.
  """
  kept = ('time0', 'time1', 'label', 'w_proj', 'final_modulation', 'final')
  cast = {k: v for k, v in params.items() if k not in kept}
  return {**params, **jax.tree.map(lambda leaf: leaf.astype(dtype), cast)}
