"""Converts published weights of guided-diffusion (ADM) to Flax parameters of models.unet.

Source of array names and settings: Dhariwal & Nichol, arXiv 2105.05233, and the GitHub repository
openai/guided-diffusion.
"""

import functools
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import jax
import numpy as np
from jax import numpy as jnp

from gdistill.convert import folding
from gdistill.models import unet

LABELS = 'label_emb.weight'  # array name of the label table; absent in unconditional networks

# Name of a layer in models.unet -> name of the layer in guided-diffusion.
_ENDS = {
  'time0': 'time_embed.0', 'time1': 'time_embed.2', 'norm_out': 'out.0', 'conv_out': 'out.2',
  'conv_in': 'input_blocks.0.0',
}  # fmt: skip
_IN_BLOCK = {
  'norm1': 'in_layers.0', 'conv1': 'in_layers.2', 'norm2': 'out_layers.0', 'conv2': 'out_layers.3',
  'shortcut': 'skip_connection',
}  # fmt: skip
_IN_ATTENTION = {'norm': 'norm', 'out': 'proj_out'}
# Fields of unet.UNet that have the same values in all networks of ADM.
CONVENTIONS = dict(epsilon=1e-5, freq_shift=0.0, cos_first=True, learned_sigma=True)
# Fields of unet.UNet for ADM's class-conditional ImageNet networks of 64 and of 256 pixels, which
# were trained with 1,000 steps. ADM_64 has a cosine schedule and order='new' (see params_from);
# ADM_256 has a linear_beta schedule and order='legacy'.
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
  """Returns Flax parameters of `net` from {'input_blocks.0.0.weight': [O, I, H, W], ...}.

  `size` is the side of the images in pixels. `order` is the order of q, k and v in the joint layer
  of an attention block: 'new' is q of all heads, then k, then v; 'legacy' is q, k, v of the first
  head, then of the second, and so on (use_new_attention_order=False in guided-diffusion). The bias
  of k is left out, because the softmax of attention cancels the bias. If `state` holds an
  unconditional network, the returned label layer is zero. ADM has no null class: a second,
  unconditional network guides the class-conditional network. Raises ConfigError with a list of the
  arrays that are missing from `state`, that `net` does not have, or whose shape differs from that
  in `net`.
  """
  wanted = {n: s for n, s in state_shapes(net, size).items() if n in state or n != LABELS}
  folding.check({name: _without_ones(np.shape(a)) for name, a in state.items()}, wanted)
  params = {
    **{ours: _layer(state, theirs) for ours, theirs in _ENDS.items()},
    'label': {'kernel': _labels(state, net)},
  }
  for ours, theirs, channels in blocks(net, size):
    if 'attn' in ours:
      heads = channels // net.head_dim if net.head_dim else net.heads
      params[ours] = _attention(state, theirs, heads, order)
    else:
      params[ours] = _resnet(state, theirs)
  return params


@functools.lru_cache
def state_shapes(net: unet.UNet, size: int) -> dict[str, tuple[int, ...]]:
  """Returns {ADM's name: shape} of the arrays of `net`, with [O, I] for a 1x1 convolution.

  The returned dict is cached, because tracing the network is slow, so callers must not change the
  dict.
  """
  z, one, cond = jnp.zeros((1, size, size, 3)), jnp.ones(1), {'label': jnp.zeros(1, jnp.int32)}
  params = jax.eval_shape(lambda: net.init(jax.random.key(0), z, one, cond, one))['params']
  layers = {theirs: (params[ours], 1) for ours, theirs in _ENDS.items()}
  for ours, theirs, _ in blocks(net, size):
    block = params[ours]
    if 'attn' in ours:
      layers[f'{theirs}.qkv'] = block['q'], 3
    else:
      layers[f'{theirs}.emb_layers.1'] = block['emb_scale'], 2
    table = _IN_ATTENTION if 'attn' in ours else _IN_BLOCK
    layers |= {f'{theirs}.{name}': (block[o], 1) for o, name in table.items() if o in block}
  shapes = {LABELS: params['label']['kernel'].shape}
  for name, (layer, times) in layers.items():
    for kind, (out, *rest) in folding.stored(layer).items():
      shapes[f'{name}.{kind}'] = _without_ones((times * out, *rest))
  return shapes


def blocks(net: unet.UNet, size: int) -> Iterator[tuple[str, str, int]]:
  """Yields (models.unet's name, ADM's name, output channels) of each block and resampling."""
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
      if level and i == net.num_blocks:  # ADM lists upsampling in the level's last block
        yield f'up{level}_resample', f'output_blocks.{place}.{1 + attends}', channels
      place += 1


def _resnet(state: Mapping[str, np.ndarray], name: str) -> dict[str, Any]:
  emb = _layer(state, f'{name}.emb_layers.1')
  halves = {kind: np.split(a, 2, axis=-1) for kind, a in emb.items()}
  return {
    'emb_scale': {kind: parts[0] for kind, parts in halves.items()},
    'emb_shift': {kind: parts[1] for kind, parts in halves.items()},
    **_layers(state, name, _IN_BLOCK),
  }


def _attention(
  state: Mapping[str, np.ndarray], name: str, heads: int, order: str
) -> dict[str, Any]:
  joint = _layer(state, f'{name}.qkv')
  shape = (3, heads) if order == 'new' else (heads, 3)
  block: dict[str, Any] = {'q': {}, 'k': {}, 'v': {}}
  for kind, a in joint.items():
    parts = a.reshape(*a.shape[:-1], *shape, -1)
    parts = parts if order == 'new' else parts.swapaxes(-3, -2)
    for i, part in enumerate('qkv'):
      block[part][kind] = parts[..., i, :, :].reshape(*a.shape[:-1], -1)
  del block['k']['bias']
  return block | _layers(state, name, _IN_ATTENTION)


def _layers(
  state: Mapping[str, np.ndarray], name: str, table: Mapping[str, str]
) -> dict[str, dict[str, np.ndarray]]:
  there = {ours: f'{name}.{theirs}' for ours, theirs in table.items()}
  return {o: _layer(state, theirs) for o, theirs in there.items() if f'{theirs}.weight' in state}


def _layer(state: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
  """Returns Flax arrays of the norm, linear layer or convolution `name` in `state`.

  A 1x1 convolution is returned as a linear layer with a kernel [I, O].
  """
  weight, bias = (np.asarray(state[f'{name}.{kind}'], np.float32) for kind in ('weight', 'bias'))
  weight = weight.reshape(_without_ones(weight.shape))
  if weight.ndim == 1:
    return {'scale': weight, 'bias': bias}
  return {'kernel': weight.transpose(2, 3, 1, 0) if weight.ndim == 4 else weight.T, 'bias': bias}


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
  """Returns [O, I] for the shape [O, I, 1] or [O, I, 1, 1], and any other shape unchanged."""
  return shape[:2] if set(shape[2:]) == {1} else shape


def _labels(state: Mapping[str, np.ndarray], net: unet.UNet) -> np.ndarray:
  if LABELS in state:
    return np.asarray(state[LABELS], np.float32)
  return np.zeros((net.num_classes, net.emb_channels), np.float32)
