"""The U-Net for pixels: residual blocks, attention at chosen resolutions, and w as an input."""

from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn
from jax import numpy as jnp

from gdistill.core import types
from gdistill.models import blocks
from gdistill.models import embeddings


class UNet(nn.Module):
  """(z [B, H, W, C], logsnr [B], cond, w [B]) -> [B, H, W, C] in float32.

  `w_features` = 0 makes a network that ignores w, such as a teacher. With `w_features` > 0, the
  Fourier features of w enter through a bias-free projection, which starts at zero, and are added to
  the time features before the time MLP: a student that starts from its teacher's parameters
  returns, before the first update, the same values as the teacher. Label -1 in cond['label'] is the
  null class: a zero one-hot vector. Layers and parameter counts follow Salimans & Ho, arXiv
  2202.00512 (60.0 M and 295.9 M parameters for CIFAR-10 and ImageNet 64, without the layers for w
  and labels). `ids` [B] are the examples' ids, on which the dropout masks depend; `ids` None turns
  dropout off. `remat` stores only the input of each block, and the backward pass recomputes the
  block. The channels of cond['extra'] [B, H, W, extra_channels] are appended to the channels of z.
  `time` maps logsnr to the network's time input, whose sinusoids are embedded. The fields
  `freq_shift`, `cos_first`, `epsilon` (of the norms) and `learned_sigma` (2C channels are computed,
  the first C returned) make this module equal to the network of Dhariwal & Nichol, arXiv
  2105.05233; convert/adm.py sets these fields.
  """

  channels: int
  multipliers: tuple[int, ...]
  num_blocks: int
  attention_resolutions: tuple[int, ...]
  num_classes: int
  emb_channels: int
  heads: int | None = 1
  head_dim: int | None = None  # if not None, attention layers have channels / head_dim heads
  groups: int = 32
  dropout: float = 0.0
  w_features: int = 0
  w_scale: float = 1000.0
  dtype: Any = jnp.float32
  remat: bool = False
  epsilon: float = 1e-6
  time: Callable[[types.PerExample], types.PerExample] = embeddings.phi_index
  freq_shift: float = 1.0
  cos_first: bool = False
  learned_sigma: bool = False
  extra_channels: int = 0

  @nn.compact
  def __call__(
    self,
    z: types.Images,
    logsnr: types.PerExample,
    cond: types.Cond,
    w: types.PerExample,
    ids: jax.Array | None = None,
  ) -> types.Images:
    emb = self._embed(logsnr, cond, w)
    read = blocks.with_extra(z, cond, self.extra_channels).astype(self.dtype)
    h = nn.Conv(self.channels, (3, 3), dtype=self.dtype, name='conv_in')(read)
    skips = [h]
    last = len(self.multipliers) - 1
    for level, multiplier in enumerate(self.multipliers):
      for i in range(self.num_blocks):
        h = self._block(multiplier, f'down{level}_block{i}')(h, emb, ids)
        h = self._attend(h, f'down{level}_attn{i}')
        skips.append(h)
      if level != last:
        h = self._block(multiplier, f'down{level}_resample', 'down')(h, emb, ids)
        skips.append(h)

    h = self._block(self.multipliers[-1], 'mid_block0')(h, emb, ids)
    h = self._attend(h, 'mid_attn', always=True)
    h = self._block(self.multipliers[-1], 'mid_block1')(h, emb, ids)

    for level, multiplier in reversed(list(enumerate(self.multipliers))):
      for i in range(self.num_blocks + 1):
        h = jnp.concatenate([h, skips.pop()], axis=-1)
        h = self._block(multiplier, f'up{level}_block{i}')(h, emb, ids)
        h = self._attend(h, f'up{level}_attn{i}')
      if level != 0:
        h = self._block(multiplier, f'up{level}_resample', 'up')(h, emb, ids)

    h = nn.silu(blocks.Norm(self.groups, self.epsilon, name='norm_out')(h))
    c = z.shape[-1]
    out = 2 * c if self.learned_sigma else c
    h = nn.Conv(out, (3, 3), dtype=jnp.float32, kernel_init=blocks.zeros, name='conv_out')(h)
    return h[..., :c]

  def _embed(self, logsnr, cond, w):
    index = self.time(logsnr)
    emb = embeddings.sinusoids(index, self.channels, self.freq_shift, self.cos_first)
    if self.w_features:
      features = embeddings.w_features(w, self.w_features, self.w_scale)
      emb += nn.Dense(self.channels, use_bias=False, kernel_init=blocks.zeros, name='w_proj')(
        features
      )
    emb = nn.Dense(self.emb_channels, name='time0')(emb)
    emb = nn.Dense(self.emb_channels, name='time1')(nn.silu(emb))
    one_hot = jax.nn.one_hot(cond['label'], self.num_classes)
    return emb + nn.Dense(self.emb_channels, use_bias=False, name='label')(one_hot)

  def _block(self, multiplier, name, resample=None):
    block = nn.remat(blocks.ResBlock) if self.remat else blocks.ResBlock
    channels = self.channels * multiplier
    return block(channels, self.groups, self.dropout, resample, self.dtype, self.epsilon, name=name)

  def _attend(self, h, name, always=False):
    if not always and h.shape[1] not in self.attention_resolutions:
      return h
    heads = h.shape[-1] // self.head_dim if self.head_dim else self.heads
    attention = nn.remat(blocks.Attention) if self.remat else blocks.Attention
    return attention(heads, self.groups, self.dtype, self.epsilon, name=name)(h)


def as_teacher(params: Any, dtype: Any) -> Any:
  """Casts to `dtype` the parameters of layers that compute in `dtype`; outputs stay bit-identical.

  A `dtype` of bfloat16 halves the memory of the parameters. Parameters of norms, embedding layers
  and the output layer stay float32.
  """
  kept = ('time0', 'time1', 'label', 'w_proj', 'norm_out', 'conv_out')

  def cast(path, leaf):
    names = [entry.key for entry in path]
    if names[0] in kept or any(name.startswith('norm') for name in names):
      return leaf
    return leaf.astype(dtype)

  return jax.tree_util.tree_map_with_path(cast, params)
