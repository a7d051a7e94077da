"""Autoencoders of latent diffusion: the networks between images [B, H, W, 3] and latents.

Every autoencoder has `encode(x) -> (mean, std)` of the posterior, and `decode(z) -> x`, where x is
not clipped. Images are in [-1, 1]. Latents in this file are unscaled; convert.autoencoder applies
the shift and scale that a diffusion model expects. Flax modules have the names of the layers in
diffusers' weight files, with '_3' in place of '.3'.
"""

import jax
from flax import linen as nn
from jax import numpy as jnp

from gdistill.models import attention
from gdistill.models import blocks


class Tiny(nn.Module):
  """TAESD: a small deterministic autoencoder with the latents of a larger autoencoder.

  `blocks_down` counts the encoder's residual blocks at each resolution, starting at the pixels.
  `blocks_up` counts the decoder's residual blocks at each resolution, starting at the latents. Each
  next resolution of the encoder halves the sides of the image. `pool` adds a second branch to the
  residual blocks at the latents' resolution; see TinyBlock. Source: github.com/madebyollin/taesd.
  """

  latent_channels: int = 4
  width: int = 64
  blocks_down: tuple[int, ...] = (1, 3, 3, 3)
  blocks_up: tuple[int, ...] = (3, 3, 3, 1)
  pool: bool = False

  @property
  def factor(self) -> int:
    """The side of an image divided by the side of its latents."""
    return 2 ** (len(self.blocks_down) - 1)

  def setup(self):
    self.encoder = TinyEncoder(self.latent_channels, self.width, self.blocks_down, self.pool)
    self.decoder = TinyDecoder(self.width, self.blocks_up, self.pool)

  def encode(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns mean [B, H/f, W/f, latent_channels] and std = 0 of x's latents, f = `factor`."""
    z = self.encoder((x + 1.0) / 2.0)
    return z, jnp.zeros_like(z)

  def decode(self, z: jax.Array) -> jax.Array:
    """Decodes latents to images [B, H, W, 3] in about [-1, 1]; values are not clipped."""
    return 2.0 * self.decoder(z) - 1.0

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.decode(self.encode(x)[0])


class TinyEncoder(nn.Module):
  """TAESD's encoder: RGB in [0, 1] -> latents."""

  latent_channels: int
  width: int
  num_blocks: tuple[int, ...]
  pool: bool

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    layer = 0
    for level, count in enumerate(self.num_blocks):
      if level == 0:
        x = _conv(self.width, f'layers_{layer}')(x)
      else:
        x = nn.Conv(
          self.width, (3, 3), 2, padding=1, use_bias=False, name=f'layers_{layer}'
        )(x)  # fmt: skip
      pool = self.pool and level == len(self.num_blocks) - 1
      for i in range(count):
        x = TinyBlock(pool, name=f'layers_{layer + 1 + i}')(x)
      layer += 1 + count
    return _conv(self.latent_channels, f'layers_{layer}')(x)


class TinyDecoder(nn.Module):
  """TAESD's decoder: latents -> RGB in [0, 1]; 3 tanh(z / 3) first limits latents to [-3, 3]."""

  width: int
  num_blocks: tuple[int, ...]
  pool: bool

  @nn.compact
  def __call__(self, z: jax.Array) -> jax.Array:
    h = nn.relu(_conv(self.width, 'layers_0')(3.0 * jnp.tanh(z / 3.0)))
    layer = 2  # not 1, because the published layer numbers count ReLU and upsampling as layers
    for level, count in enumerate(self.num_blocks):
      for i in range(count):
        h = TinyBlock(self.pool and level == 0, name=f'layers_{layer + i}')(h)
      layer += count
      if level != len(self.num_blocks) - 1:
        h = blocks.resampled(h, 'up')
        h = nn.Conv(self.width, (3, 3), use_bias=False, name=f'layers_{layer + 1}')(h)
        layer += 2
    return _conv(3, f'layers_{layer}')(h)


class TinyBlock(nn.Module):
  """relu(h + conv(relu(conv(relu(conv(h)))))), after h += conv(relu(norm(conv(h)))) if `pool`.

  The branch that `pool` adds has 1x1 convolutions at four times the width, so in this branch pixels
  depend on each other only through the mean and the variance of the norm.
  """

  pool: bool

  @nn.compact
  def __call__(self, h: jax.Array) -> jax.Array:
    width = h.shape[-1]
    if self.pool:
      a = nn.Conv(4 * width, (1, 1), use_bias=False, name='pool_0')(h)
      a = nn.relu(blocks.Norm(4, 1e-5, name='pool_1')(a))
      h += nn.Conv(width, (1, 1), use_bias=False, name='pool_3')(a)
    a = nn.relu(_conv(width, 'conv_0')(h))
    a = nn.relu(_conv(width, 'conv_2')(a))
    return nn.relu(h + _conv(width, 'conv_4')(a))


class KL(nn.Module):
  """Stable Diffusion's autoencoder: residual blocks, attention in the middle, Gaussian posterior.

  `widths` are the channels of each resolution, starting at the pixels; each next resolution halves
  the sides of the image. A resolution has `layers` residual blocks in the encoder and `layers` + 1
  in the decoder. Source: Rombach et al., arXiv 2112.10752.
  """

  latent_channels: int = 4
  widths: tuple[int, ...] = (128, 256, 512, 512)
  layers: int = 2
  groups: int = 32
  mid_attention: bool = True
  quant_conv: bool = True
  post_quant_conv: bool = True

  @property
  def factor(self) -> int:
    """The side of an image divided by the side of its latents."""
    return 2 ** (len(self.widths) - 1)

  def setup(self):
    sizes = self.widths, self.layers, self.groups, self.mid_attention
    self.encoder = Encoder(2 * self.latent_channels, *sizes)
    self.decoder = Decoder(*sizes)
    if self.quant_conv:
      self.to_moments = nn.Conv(2 * self.latent_channels, (1, 1), name='quant_conv')
    if self.post_quant_conv:
      self.from_latents = nn.Conv(self.latent_channels, (1, 1), name='post_quant_conv')

  def encode(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns mean and std of the posterior, each [B, H/f, W/f, latent_channels], f = `factor`."""
    h = self.encoder(x)
    mean, logvar = jnp.split(self.to_moments(h) if self.quant_conv else h, 2, axis=-1)
    return mean, jnp.exp(0.5 * jnp.clip(logvar, -30.0, 20.0))

  def decode(self, z: jax.Array) -> jax.Array:
    """Decodes latents to images [B, H, W, 3] in about [-1, 1]; values are not clipped."""
    return self.decoder(self.from_latents(z) if self.post_quant_conv else z)

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.decode(self.encode(x)[0])


class VQ(nn.Module):
  """The autoencoder of latent diffusion on ImageNet, with a codebook in front of the decoder.

  Diffusion works on the encoder's latents; `decode` first replaces each latent by the nearest entry
  of the codebook. Fields that class KL also has mean the same as in KL. Source: Rombach et al.,
  arXiv 2112.10752.
  """

  latent_channels: int = 3
  widths: tuple[int, ...] = (128, 256, 512)
  layers: int = 2
  groups: int = 32
  mid_attention: bool = True
  entries: int = 8192

  @property
  def factor(self) -> int:
    """The side of an image divided by the side of its latents."""
    return 2 ** (len(self.widths) - 1)

  def setup(self):
    sizes = self.widths, self.layers, self.groups, self.mid_attention
    self.encoder = Encoder(self.latent_channels, *sizes)
    self.decoder = Decoder(*sizes)
    self.quant_conv = nn.Conv(self.latent_channels, (1, 1))
    self.post_quant_conv = nn.Conv(self.latent_channels, (1, 1))
    self.codebook = nn.Embed(self.entries, self.latent_channels, name='quantize')

  def encode(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns mean [B, H/f, W/f, latent_channels] and std = 0 of x's latents, f = `factor`."""
    z = self.quant_conv(self.encoder(x))
    return z, jnp.zeros_like(z)

  def quantise(self, z: jax.Array) -> jax.Array:
    """Returns, for each latent in z, the nearest entry of the codebook."""
    table = self.codebook.embedding.T[:, None, None, None]
    # The distances are summed channel by channel, so that XLA fuses the sum into argmin and stores
    # no array of [pixels, entries].
    distance = sum((z[..., c, None] - table[c]) ** 2 for c in range(self.latent_channels))
    return self.codebook(jnp.argmin(distance, axis=-1))

  def decode(self, z: jax.Array) -> jax.Array:
    """Decodes latents to images [B, H, W, 3] in about [-1, 1]; values are not clipped."""
    return self.decoder(self.post_quant_conv(self.quantise(z)))

  def __call__(self, x: jax.Array) -> jax.Array:
    return self.decode(self.encode(x)[0])


class Encoder(nn.Module):
  """Encoder of KL and VQ: images -> [B, H/f, W/f, out_channels], f = 2^(len(widths) - 1)."""

  out_channels: int
  widths: tuple[int, ...]
  layers: int
  groups: int
  attention: bool

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    h = _conv(self.widths[0], 'conv_in')(x)
    for level, width in enumerate(self.widths):
      resample = 'down' if level != len(self.widths) - 1 else None
      h = Level(width, self.layers, self.groups, resample, name=f'down_blocks_{level}')(h)
    h = Middle(self.groups, self.attention, name='mid_block')(h)
    h = nn.silu(_norm(self.groups, 'conv_norm_out')(h))
    return _conv(self.out_channels, 'conv_out')(h)


class Decoder(nn.Module):
  """Decoder of KL and VQ: latents -> images."""

  widths: tuple[int, ...]
  layers: int
  groups: int
  attention: bool

  @nn.compact
  def __call__(self, z: jax.Array) -> jax.Array:
    h = _conv(self.widths[-1], 'conv_in')(z)
    h = Middle(self.groups, self.attention, name='mid_block')(h)
    for level, width in enumerate(reversed(self.widths)):
      resample = 'up' if level != len(self.widths) - 1 else None
      h = Level(width, self.layers + 1, self.groups, resample, name=f'up_blocks_{level}')(h)
    h = nn.silu(_norm(self.groups, 'conv_norm_out')(h))
    return _conv(3, 'conv_out')(h)


class Level(nn.Module):
  """Residual blocks of one resolution, then resampling 'down' or 'up' unless `resample` is None."""

  width: int
  layers: int
  groups: int
  resample: str | None

  @nn.compact
  def __call__(self, h: jax.Array) -> jax.Array:
    for i in range(self.layers):
      h = ResBlock(self.width, self.groups, name=f'resnets_{i}')(h)
    if self.resample is None:
      return h
    return Resample(self.resample, name=f'{self.resample}samplers_0')(h)


class Resample(nn.Module):
  """Halves (`how` 'down') or doubles (`how` 'up') the height and the width of h.

  'down' is a 3x3 convolution of stride 2, padded only on the right and below.
  'up' repeats each pixel 2x2 and then applies a 3x3 convolution.
  """

  how: str

  @nn.compact
  def __call__(self, h: jax.Array) -> jax.Array:
    if self.how == 'up':
      return _conv(h.shape[-1], 'conv')(blocks.resampled(h, 'up'))
    return nn.Conv(h.shape[-1], (3, 3), 2, padding=((0, 1), (0, 1)), name='conv')(h)


class Middle(nn.Module):
  """Middle of an encoder or decoder: residual block, attention if `attention`, residual block."""

  groups: int
  attention: bool

  @nn.compact
  def __call__(self, h: jax.Array) -> jax.Array:
    width = h.shape[-1]
    h = ResBlock(width, self.groups, name='resnets_0')(h)
    if self.attention:
      h = Attention(self.groups, name='attentions_0')(h)
    return ResBlock(width, self.groups, name='resnets_1')(h)


class ResBlock(nn.Module):
  """h + conv(silu(norm(conv(silu(norm(h)))))), with a 1x1 convolution on h if the width changes."""

  width: int
  groups: int

  @nn.compact
  def __call__(self, h: jax.Array) -> jax.Array:
    a = _conv(self.width, 'conv1')(nn.silu(_norm(self.groups, 'norm1')(h)))
    a = _conv(self.width, 'conv2')(nn.silu(_norm(self.groups, 'norm2')(a)))
    if h.shape[-1] != self.width:
      h = nn.Conv(self.width, (1, 1), name='conv_shortcut')(h)
    return h + a


class Attention(nn.Module):
  """h + out(softmax(q k / sqrt(width)) v) over the pixels of one image, in one head."""

  groups: int

  @nn.compact
  def __call__(self, h: jax.Array) -> jax.Array:
    b, _, _, c = h.shape
    normed = _norm(self.groups, 'group_norm')(h).reshape(b, -1, 1, c)
    q, k, v = (nn.Dense(c, name=f'to_{name}')(normed) for name in 'qkv')
    a = attention.attention(q, k, v).reshape(h.shape)
    return h + nn.Dense(c, name='to_out_0')(a)


def _conv(width: int, name: str) -> nn.Conv:
  return nn.Conv(width, (3, 3), name=name)


def _norm(groups: int, name: str) -> blocks.Norm:
  return blocks.Norm(groups, 1e-6, name=name)
