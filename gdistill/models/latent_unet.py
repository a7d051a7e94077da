"""The U-Net of latent diffusion and Stable Diffusion: text or a class enters by cross-attention."""

from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn
from jax import numpy as jnp

from gdistill.core import condition
from gdistill.core import types
from gdistill.models import attention
from gdistill.models import blocks
from gdistill.models import embeddings

# Fields of LatentUNet for Stable Diffusion 1.x. The inpainting network of Stable Diffusion 1.x also
# has extra_channels=5: one for a mask, and four for the latents of the masked image.
SD1 = dict(
  channels=(320, 640, 1280, 1280), num_blocks=2, attention=(True, True, True, False),
  heads=(8, 8, 8, 8), context='text', context_dim=768, out_channels=4,
)  # fmt: skip
# Fields of LatentUNet for Stable Diffusion 2.x.
SD2 = {**SD1, 'heads': (5, 10, 20, 20), 'context_dim': 1024, 'linear_projection': True}
# Fields of LatentUNet for latent diffusion on ImageNet 256 (cin256-v2). The class table has 1,001
# rows: 1,000 classes, then the null class.
CIN256 = dict(
  channels=(192, 384, 576, 960), num_blocks=2, attention=(False, True, True, True),
  heads=(1, 1, 1, 1), context='class', context_dim=512, num_classes=1000, out_channels=3,
)  # fmt: skip


class LatentUNet(nn.Module):
  """(z [B, H, W, C], logsnr [B], cond, w [B]) -> [B, H, W, out_channels] in float32.

  `channels`, `attention` and `heads` have an entry for each resolution, the finest first; H and W
  are multiples of 2^(resolutions - 1). `context` says what the transformers attend to beside the
  pixels:
    'text'   means the tokens cond['text'] [B, L, context_dim]. If cond has a 'text_mask' [B, L],
             only tokens with text_mask True are attended to. For examples with label -1, the
             parameter `null_text` [context_length, context_dim] replaces cond['text']. The
             parameter `null_text` is set to the embedding of the empty prompt and is not trained.
    'class'  means one token: row cond['label'] of the class table, or the last row for label -1.
    'none'   means that the transformers attend to the pixels alone. With `context` 'none' and
             `num_classes` > 0, the class is added to the time embedding as a one-hot vector, which
             is zero for label -1.
  The channels of cond['extra'] [B, H, W, extra_channels] are appended to the channels of z. `time`
  maps logsnr to the network's time input, whose sinusoids are embedded. `out_channels` 0 means as
  many output channels as z has. `emb_channels` 0 means a time embedding of 4 channels[0] features.
  `w_features`, `ids` and `remat` mean the same as in unet.UNet. `linear_projection` does not change
  this network: the field says how published weights store the transformers' first and last layers.

  Source: Rombach et al., arXiv 2112.10752. Layers and parameter counts agree with diffusers'
  UNet2DConditionModel (859.5 M parameters for Stable Diffusion 1.x).
  """

  channels: tuple[int, ...]
  num_blocks: int
  attention: tuple[bool, ...]
  heads: tuple[int, ...]
  context: str = 'text'
  context_dim: int = 0
  context_length: int = 77
  num_classes: int = 0
  transformer_depth: int = 1
  linear_projection: bool = False
  out_channels: int = 0
  extra_channels: int = 0
  emb_channels: int = 0
  groups: int = 32
  epsilon: float = 1e-5  # group norms inside the transformers have epsilon 1e-6 instead
  dropout: float = 0.0
  time: Callable[[jax.Array], jax.Array] = embeddings.phi_index
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
    emb = self._embed(logsnr, cond, w)
    context = self._context(cond)
    h = self._conv(self.channels[0], 'conv_in')(
      blocks.with_extra(z, cond, self.extra_channels).astype(self.dtype)
    )
    skips = [h]
    last = len(self.channels) - 1
    for level, channels in enumerate(self.channels):
      for i in range(self.num_blocks):
        h = self._block(channels, f'down{level}_block{i}')(h, emb, ids)
        h = self._attend(h, context, level, f'down{level}_attn{i}')
        skips.append(h)
      if level != last:
        # padding=1 pads both ends of an axis, as torch does; 'SAME' would pad one end at stride 2.
        h = self._conv(channels, f'down{level}_resample', strides=2, padding=1)(h)
        skips.append(h)

    h = self._block(self.channels[-1], 'mid_block0')(h, emb, ids)
    h = self._attend(h, context, last, 'mid_attn', always=True)
    h = self._block(self.channels[-1], 'mid_block1')(h, emb, ids)

    for level, channels in reversed(list(enumerate(self.channels))):
      for i in range(self.num_blocks + 1):
        h = jnp.concatenate([h, skips.pop()], axis=-1)
        h = self._block(channels, f'up{level}_block{i}')(h, emb, ids)
        h = self._attend(h, context, level, f'up{level}_attn{i}')
      if level != 0:
        h = self._conv(channels, f'up{level}_resample')(blocks.resampled(h, 'up'))

    h = nn.silu(blocks.Norm(self.groups, self.epsilon, name='norm_out')(h))
    return nn.Conv(
      self.out_channels or z.shape[-1], (3, 3), dtype=jnp.float32, kernel_init=blocks.zeros,
      name='conv_out',
    )(h)  # fmt: skip

  def _embed(self, logsnr, cond, w):
    emb = embeddings.sinusoids(self.time(logsnr), self.channels[0], 0.0, True)
    if self.w_features:
      features = embeddings.w_features(w, self.w_features, self.w_scale)
      emb += nn.Dense(self.channels[0], use_bias=False, kernel_init=blocks.zeros, name='w_proj')(
        features
      )
    width = self.emb_channels or 4 * self.channels[0]
    emb = nn.Dense(width, name='time0')(emb)
    emb = nn.Dense(width, name='time1')(nn.silu(emb))
    if self.context == 'none' and self.num_classes:
      one_hot = jax.nn.one_hot(cond['label'], self.num_classes)
      emb += nn.Dense(width, use_bias=False, name='label')(one_hot)
    return emb

  def _context(self, cond):
    """Returns (tokens [B, L, context_dim], counts [B, L]) for cross-attention.

    `tokens` is None if the network's `context` is 'none'. `counts` is True for the tokens that are
    attended to; `counts` None means that all tokens are attended to.
    """
    if self.context == 'none':
      return None, None
    absent = cond['label'] == condition.NULL_LABEL
    if self.context == 'class':
      shape = (self.num_classes + 1, self.context_dim)
      table = self.param('class_table', nn.initializers.normal(1.0), shape)
      return table[jnp.where(absent, self.num_classes, cond['label'])][:, None], None
    null = self.param('null_text', blocks.zeros, (self.context_length, self.context_dim))
    null = jax.lax.stop_gradient(null)[None]
    counts = cond.get('text_mask')
    counts = None if counts is None else counts | absent[:, None]
    return jnp.where(absent[:, None, None], null, cond['text']), counts

  def _conv(self, channels, name, **given):
    return nn.Conv(channels, (3, 3), dtype=self.dtype, name=name, **given)

  def _block(self, channels, name):
    block = nn.remat(ResBlock) if self.remat else ResBlock
    return block(channels, self.groups, self.epsilon, self.dropout, self.dtype, name=name)

  def _attend(self, h, context, level, name, always=False):
    if not always and not self.attention[level]:
      return h
    transformer = nn.remat(Transformer) if self.remat else Transformer
    return transformer(
      self.heads[level], self.transformer_depth, self.groups, self.dtype, name=name
    )(h, *context)


class ResBlock(nn.Module):
  """h + conv(dropout(silu(norm(conv(silu(norm(h))) + shift)))), shift = dense(silu(emb [B, E])).

  The weights of the last convolution start at zero, so a freshly initialised block returns only the
  shortcut's value.
  """

  channels: int
  groups: int
  epsilon: float
  dropout: float = 0.0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, h: jax.Array, emb: jax.Array, ids: jax.Array | None) -> jax.Array:
    skip = h
    h = nn.silu(blocks.Norm(self.groups, self.epsilon, name='norm1')(h)).astype(self.dtype)
    h = nn.Conv(self.channels, (3, 3), dtype=self.dtype, name='conv1')(h)
    shift = nn.Dense(self.channels, dtype=self.dtype, name='emb_shift')(nn.silu(emb))
    h = h + shift[:, None, None]
    h = nn.silu(blocks.Norm(self.groups, self.epsilon, name='norm2')(h))
    h = blocks.Dropout(self.dropout, name='dropout')(h, ids).astype(self.dtype)
    h = nn.Conv(self.channels, (3, 3), dtype=self.dtype, kernel_init=blocks.zeros, name='conv2')(h)
    if skip.shape[-1] != self.channels:
      skip = nn.Dense(self.channels, dtype=self.dtype, name='shortcut')(skip)
    return skip + h


class Transformer(nn.Module):
  """h + proj_out(layers(proj_in(norm(h)))) over the pixels of one image; proj_out starts at zero.

  The layers attend to the pixels and, unless `context` [B, L, D] is None, to `context`. `counts`
  [B, L] is True for the tokens of `context` that are attended to; `counts` None means all tokens.
  """

  heads: int
  depth: int
  groups: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, h: jax.Array, context: jax.Array | None = None, counts: jax.Array | None = None
  ) -> jax.Array:
    b, height, width, c = h.shape
    a = blocks.Norm(self.groups, name='norm')(h).astype(self.dtype).reshape(b, height * width, c)
    a = nn.Dense(c, dtype=self.dtype, name='proj_in')(a)
    for i in range(self.depth):
      a = Layer(self.heads, self.dtype, name=f'layer{i}')(a, context, counts)
    a = nn.Dense(c, dtype=self.dtype, kernel_init=blocks.zeros, name='proj_out')(a)
    return h + a.reshape(h.shape)


class Layer(nn.Module):
  """Adds self-attention, then cross-attention if `context` is given, then a GEGLU MLP to h.

  Self-attention, cross-attention and the MLP each read a layer norm of h.
  """

  heads: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, h: jax.Array, context: jax.Array | None, counts: jax.Array | None
  ) -> jax.Array:
    def normed(name):
      return nn.LayerNorm(1e-5, name=name)(h).astype(self.dtype)

    a = normed('norm1')
    h += Attention(self.heads, self.dtype, name='attn1')(a, a)
    if context is not None:
      h += Attention(self.heads, self.dtype, name='attn2')(normed('norm2'), context, counts)
    c = h.shape[-1]
    a, gate = jnp.split(nn.Dense(8 * c, dtype=self.dtype, name='ff0')(normed('norm3')), 2, axis=-1)
    return h + nn.Dense(c, dtype=self.dtype, name='ff1')(a * nn.gelu(gate, approximate=False))


class Attention(nn.Module):
  """out(softmax(q k / sqrt(d)) v): q from h [B, N, C], k and v from context [B, L, D].

  `counts` [B, L] is True for the tokens of `context` that are attended to; `counts` None means all
  tokens.
  """

  heads: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, h: jax.Array, context: jax.Array, counts: jax.Array | None = None
  ) -> jax.Array:
    b, n, c = h.shape
    q, k, v = (
      nn.Dense(c, use_bias=False, dtype=self.dtype, name=name)(of).reshape(
        b, -1, self.heads, c // self.heads
      )
      for name, of in (('q', h), ('k', context), ('v', context))
    )
    a = attention.attention(q, k, v, counts).reshape(b, n, c)
    return nn.Dense(c, dtype=self.dtype, name='out')(a)


def example(net: LatentUNet, size: int, channels: int, count: int = 1) -> tuple:
  """Returns arguments (z, logsnr, cond, w) of zeros, to initialise or trace the network `net`."""
  cond = {'label': jnp.zeros(count, jnp.int32)}
  if net.context == 'text':
    cond['text'] = jnp.zeros((count, net.context_length, net.context_dim))
  if net.extra_channels:
    cond['extra'] = jnp.zeros((count, size, size, net.extra_channels))
  return jnp.zeros((count, size, size, channels)), jnp.zeros(count), cond, jnp.zeros(count)


def as_teacher(params: Any, dtype: Any) -> Any:
  """Casts to `dtype` the parameters of layers that compute in `dtype`; outputs stay bit-identical.

  A `dtype` of bfloat16 halves the memory of the parameters. Parameters of norms, embedding layers,
  class_table, null_text and the output layer stay float32.
  """
  kept = (
    'time0', 'time1', 'label', 'w_proj', 'class_table', 'null_text', 'norm_out', 'conv_out',
  )  # fmt: skip

  def cast(path, leaf):
    names = [entry.key for entry in path]
    if names[0] in kept or any(name.startswith('norm') for name in names):
      return leaf
    return leaf.astype(dtype)

  return jax.tree_util.tree_map_with_path(cast, params)
