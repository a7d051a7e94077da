"""The U-Net of gdistill/models/unet.py in PyTorch: the same layers, names and arithmetic, NCHW.

`load` copies the parameters of the Flax network; a parity test compares the two outputs.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional


def sinusoids(a: torch.Tensor, dim: int) -> torch.Tensor:
  """[B] -> [B, dim]: sines, then cosines, of a times frequencies from 1 down to 1e-4."""
  half = dim // 2
  f = torch.exp(-math.log(10_000.0) / (half - 1) * torch.arange(half, dtype=torch.float32))
  angles = a[:, None] * f[None, :]
  return torch.cat([torch.sin(angles), torch.cos(angles)], dim=1)


class ResBlock(nn.Module):
  """h + conv(silu(norm(conv(silu(norm(h)))) with scale and shift from emb))."""

  def __init__(self, inputs, channels, emb_channels, groups, resample=None):
    super().__init__()
    self.resample = resample
    self.norm1 = nn.GroupNorm(groups, inputs, eps=1e-6)
    self.conv1 = nn.Conv2d(inputs, channels, 3, padding=1)
    self.emb_scale = nn.Linear(emb_channels, channels)
    self.emb_shift = nn.Linear(emb_channels, channels)
    self.norm2 = nn.GroupNorm(groups, channels, eps=1e-6)
    self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
    self.shortcut = nn.Linear(inputs, channels) if inputs != channels else None

  def _resampled(self, h):
    if self.resample == 'down':
      return functional.avg_pool2d(h, 2)
    if self.resample == 'up':
      return functional.interpolate(h, scale_factor=2, mode='nearest')
    return h

  def forward(self, h, emb):
    skip = self._resampled(h)
    h = self.conv1(self._resampled(functional.silu(self.norm1(h))))
    emb = functional.silu(emb)
    scale, shift = (layer(emb)[:, :, None, None] for layer in (self.emb_scale, self.emb_shift))
    h = self.conv2(functional.silu(self.norm2(h) * (1.0 + scale) + shift))
    if self.shortcut is not None:
      weight = self.shortcut.weight[:, :, None, None]
      skip = functional.conv2d(skip, weight, self.shortcut.bias)
    return skip + h


class Attention(nn.Module):
  """h + out(softmax(q k / sqrt(d)) v) over the pixels of one image."""

  def __init__(self, channels, heads, groups):
    super().__init__()
    self.heads = heads
    self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
    self.q, self.v, self.out = (nn.Linear(channels, channels) for _ in range(3))
    self.k = nn.Linear(channels, channels, bias=False)

  def forward(self, h):
    b, c, height, width = h.shape
    normed = self.norm(h).flatten(2).transpose(1, 2)
    q, k, v = (
      layer(normed).reshape(b, -1, self.heads, c // self.heads).transpose(1, 2)
      for layer in (self.q, self.k, self.v)
    )
    a = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, -1, c)
    return h + self.out(a).transpose(1, 2).reshape(b, c, height, width)


class UNet(nn.Module):
  """(z [B, C, H, W], logsnr [B], label [B], w [B]) -> [B, C, H, W]; settings as recipe.Model."""

  def __init__(self, settings: Any, takes_w: bool):
    super().__init__()
    s, groups, emb = settings, settings.groups, settings.emb_channels
    self.settings, self.takes_w = settings, takes_w
    self.parts = nn.ModuleDict()
    self.time0, self.time1 = nn.Linear(s.channels, emb), nn.Linear(emb, emb)
    self.label = nn.Linear(s.num_classes, emb, bias=False)
    if takes_w:
      self.w_proj = nn.Linear(s.w_features, s.channels, bias=False)
    self.conv_in = nn.Conv2d(s.image_channels, s.channels, 3, padding=1)
    here, size, skips = s.channels, s.image_size, [s.channels]
    self.walk = []  # the steps of forward: ('block' | 'attn' | 'push' | 'pop', name)

    def block(name, width, resample=None, extra=0):
      nonlocal here
      self.parts[name] = ResBlock(here + extra, width, emb, groups, resample)
      self.walk.append(('block', name))
      here = width

    def attend(name, always=False):
      if always or size in s.attention_resolutions:
        heads = here // s.head_dim if s.head_dim else s.heads
        self.parts[name] = Attention(here, heads, groups)
        self.walk.append(('attn', name))

    def push():
      skips.append(here)
      self.walk.append(('push', ''))

    last = len(s.multipliers) - 1
    for level, multiplier in enumerate(s.multipliers):
      for i in range(s.num_blocks):
        block(f'down{level}_block{i}', s.channels * multiplier)
        attend(f'down{level}_attn{i}')
        push()
      if level != last:
        size //= 2
        block(f'down{level}_resample', s.channels * multiplier, 'down')
        push()
    block('mid_block0', here)
    attend('mid_attn', always=True)
    block('mid_block1', here)
    for level, multiplier in reversed(list(enumerate(s.multipliers))):
      for i in range(s.num_blocks + 1):
        self.walk.append(('pop', ''))
        block(f'up{level}_block{i}', s.channels * multiplier, extra=skips.pop())
        attend(f'up{level}_attn{i}')
      if level:
        size *= 2
        block(f'up{level}_resample', s.channels * multiplier, 'up')
    self.norm_out = nn.GroupNorm(groups, here, eps=1e-6)
    self.conv_out = nn.Conv2d(here, s.image_channels, 3, padding=1)

  def forward(self, z, logsnr, label, w):
    s = self.settings
    time = 1000.0 * torch.arctan(torch.exp(-0.5 * logsnr)) / (0.5 * math.pi)
    emb = sinusoids(time, s.channels)
    if self.takes_w:
      emb = emb + self.w_proj(sinusoids(s.w_scale * w, s.w_features))
    emb = self.time1(functional.silu(self.time0(emb)))
    one_hot = (label[:, None] == torch.arange(s.num_classes)[None]).float()  # -1: all zeros
    emb = emb + self.label(one_hot)
    h = self.conv_in(z)
    skips = [h]
    for what, name in self.walk:
      if what == 'block':
        h = self.parts[name](h, emb)
      elif what == 'attn':
        h = self.parts[name](h)
      elif what == 'push':
        skips.append(h)
      else:
        h = torch.cat([h, skips.pop()], dim=1)
    return self.conv_out(functional.silu(self.norm_out(h)))


def load(net: UNet, params: Any) -> UNet:
  """Copies the parameters of the Flax network into `net`, and returns `net`."""
  own = dict(net.named_parameters())
  for layer, tree in _layers(params):
    for leaf, value in tree.items():
      name = f'{layer}.{"bias" if leaf == "bias" else "weight"}'
      name = name if name in own else f'parts.{name}'
      a = np.array(value, np.float32)  # a copy: torch needs an array that it may write to
      if leaf == 'kernel':
        a = a.transpose(3, 2, 0, 1) if a.ndim == 4 else a.T
      parameter = own.pop(name)
      if tuple(parameter.shape) != a.shape:
        raise ValueError(f'{name} is {tuple(parameter.shape)} in PyTorch and {a.shape} in Flax')
      parameter.data.copy_(torch.from_numpy(np.ascontiguousarray(a)))
  if own:
    raise ValueError(f'the Flax network has no parameters {sorted(own)}')
  return net


def _layers(tree: Any, prefix: str = '') -> list:
  """Returns [('mid_attn.q', {'kernel': ..., 'bias': ...}), ...], the layers of a Flax tree."""
  out = []
  for name, value in tree.items():
    if any(hasattr(leaf, 'shape') for leaf in value.values()):
      out.append((prefix + name, value))
    else:
      out += _layers(value, f'{prefix}{name}.')
  return out
