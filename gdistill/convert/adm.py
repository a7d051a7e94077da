"""Published weights of guided-diffusion (ADM), by their original names, for models.unet.

Source of names and settings: Dhariwal & Nichol, 2105.05233, and openai/guided-diffusion.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np

from gdistill import errors
from gdistill.convert import folding
from gdistill.models import unet

_OF = 'ADM'
# What all of them have, and models.unet has as a choice.
CONVENTIONS = dict(epsilon=1e-5, freq_shift=0.0, cos_first=True, learned_sigma=True)
# Class-conditional ImageNet. `order` below is 'new' for the first and 'legacy' for the second; the
# first one's schedule is cosine and the second one's linear_beta, both with 1000 steps.
ADM_64 = dict(
  channels=192, multipliers=(1, 2, 3, 4), num_blocks=3, attention_resolutions=(32, 16, 8),
  num_classes=1000, emb_channels=768, heads=None, head_dim=64, dropout=0.1, **CONVENTIONS,
)  # fmt: skip
ADM_256 = dict(
  channels=256, multipliers=(1, 1, 2, 2, 4, 4), num_blocks=2, attention_resolutions=(32, 16, 8),
  num_classes=1000, emb_channels=1024, heads=None, head_dim=64, **CONVENTIONS,
)  # fmt: skip


def params_from(
  state: Mapping[str, np.ndarray], net: unet.UNet, size: int, order: Literal['new', 'legacy']
) -> dict:
  """Flax parameters of `net` from {'input_blocks.0.0.weight': [O, I, H, W], ...}.

  `size` is the side of the images. `order` says how q, k and v lie in a layer: 'new' all q, all k,
  all v; 'legacy' q, k, v of one head after the other (use_new_attention_order=False). The bias of k
  is left out: softmax does not see it. A network without classes becomes one whose labels say
  nothing: ADM has no null class, and guides a network with classes by another one without.
  ConfigError names the first array that is missing or not expected.
  """
  state = dict(state)
  params = {
    'time0': _linear(state, 'time_embed.0'),
    'time1': _linear(state, 'time_embed.2'),
    'norm_out': _norm(state, 'out.0'),
    'conv_out': _conv(state, 'out.2'),
    'conv_in': _conv(state, 'input_blocks.0.0'),
    'label': {'kernel': _labels(state, net)},
  }
  for ours, theirs, channels in _blocks(net, size):
    if 'attn' in ours:
      heads = channels // net.head_dim if net.head_dim else net.heads
      params[ours] = _attention(state, theirs, heads, order)
    else:
      params[ours] = _resnet(state, theirs)
  if state:
    raise errors.ConfigError(f'{min(state)!r} is no array of {_OF} with these settings')
  return params


def _blocks(net: unet.UNet, size: int) -> Iterator[tuple[str, str, int]]:
  """(our block, theirs, its output channels), residual blocks and attention."""
  place, last = 1, len(net.multipliers) - 1
  for level, multiplier in enumerate(net.multipliers):
    channels, attends = net.channels * multiplier, size >> level in net.attention_resolutions
    for i in range(net.num_blocks):
      yield f'down{level}_block{i}', f'input_blocks.{place}.0', channels
      if attends:
        yield f'down{level}_attn{i}', f'input_blocks.{place}.1', channels
      place += 1
    if level != last:
      yield f'down{level}_resample', f'input_blocks.{place}.0', channels
      place += 1
  for ours, i in (('mid_block0', 0), ('mid_attn', 1), ('mid_block1', 2)):
    yield ours, f'middle_block.{i}', net.channels * net.multipliers[-1]
  place = 0
  for level in range(last, -1, -1):
    channels = net.channels * net.multipliers[level]
    attends = size >> level in net.attention_resolutions
    for i in range(net.num_blocks + 1):
      yield f'up{level}_block{i}', f'output_blocks.{place}.0', channels
      if attends:
        yield f'up{level}_attn{i}', f'output_blocks.{place}.1', channels
      if level and i == net.num_blocks:  # upsampling shares the entry of the level's last block
        yield f'up{level}_resample', f'output_blocks.{place}.{1 + attends}', channels
      place += 1


def _resnet(state: dict, name: str) -> dict[str, Any]:
  emb = _linear(state, f'{name}.emb_layers.1')
  halves = {kind: np.split(a, 2, axis=-1) for kind, a in emb.items()}
  block = {
    'norm1': _norm(state, f'{name}.in_layers.0'),
    'conv1': _conv(state, f'{name}.in_layers.2'),
    'emb_scale': {kind: parts[0] for kind, parts in halves.items()},
    'emb_shift': {kind: parts[1] for kind, parts in halves.items()},
    'norm2': _norm(state, f'{name}.out_layers.0'),
    'conv2': _conv(state, f'{name}.out_layers.3'),
  }
  if f'{name}.skip_connection.weight' in state:
    block['shortcut'] = _linear(state, f'{name}.skip_connection')
  return block


def _attention(state: dict, name: str, heads: int, order: str) -> dict[str, Any]:
  joint = _linear(state, f'{name}.qkv')
  shape = (3, heads) if order == 'new' else (heads, 3)
  block: dict[str, Any] = {'q': {}, 'k': {}, 'v': {}}
  for kind, a in joint.items():
    parts = a.reshape(*a.shape[:-1], *shape, -1)
    parts = parts if order == 'new' else parts.swapaxes(-3, -2)
    for i, part in enumerate('qkv'):
      block[part][kind] = parts[..., i, :, :].reshape(*a.shape[:-1], -1)
  del block['k']['bias']
  return {**block, 'norm': _norm(state, f'{name}.norm'), 'out': _linear(state, f'{name}.proj_out')}


def _labels(state: dict, net: unet.UNet) -> np.ndarray:
  if 'label_emb.weight' in state:
    return _array(state, 'label_emb.weight')
  return np.zeros((net.num_classes, net.emb_channels), np.float32)


def _conv(state: dict, name: str) -> dict[str, np.ndarray]:
  kernel = _array(state, f'{name}.weight').transpose(2, 3, 1, 0)
  return {'kernel': kernel, 'bias': _array(state, f'{name}.bias')}


def _linear(state: dict, name: str) -> dict[str, np.ndarray]:
  """Of a linear layer, or of a convolution of size 1 in one or two dimensions."""
  weight = _array(state, f'{name}.weight')
  return {'kernel': weight.reshape(weight.shape[:2]).T, 'bias': _array(state, f'{name}.bias')}


def _norm(state: dict, name: str) -> dict[str, np.ndarray]:
  return {'scale': _array(state, f'{name}.weight'), 'bias': _array(state, f'{name}.bias')}


def _array(state: dict, name: str) -> np.ndarray:
  return folding.taken(state, name, _OF).astype(np.float32)
