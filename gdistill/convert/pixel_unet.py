"""Converts the pixel U-Net (models.unet) to a UNet2DConditionModel of diffusers, and back.

A caller passes four inputs to the exported network: `timestep`, `class_labels`, `timestep_cond` and
`encoder_hidden_states`.

- `timestep` is a number i from 0 to 999, whole or not, and stands for the angle
  phi = (pi/2) (i + 1) / 1000, that is for the noise level `logsnr_at(i)`. models.unet embeds i + 1
  where diffusers embeds i. A rotation of each pair of sine and cosine turns the embedding of i into
  the embedding of i + 1. This rotation of embeddings is folded into the first layer of the time MLP
  and into the projection of w, because the projected w is added to the time embedding before the
  time MLP.
- `class_labels` is the label, or `num_classes` for the null class, whose embedding is zero.
- `timestep_cond` is embeddings.w_features(w, w_features, w_scale), if the network takes w. The
  function of diffusers for these features multiplies w by 1000, so a caller gives it
  w * w_scale / 1000.
- `encoder_hidden_states` is an array [B, 0, 1], which holds no text tokens. The only blocks of
  diffusers that have attention and also change the resolution by residual blocks attend to text
  tokens and pixels; without text tokens, such blocks compute self-attention.

The export is exact except for the epsilon of the norms in attention blocks, which diffusers cannot
configure: the epsilon is 1e-5 in diffusers and by default 1e-6 in models.unet. An epsilon of 1e-5
instead of 1e-6 changes the input of attention by a relative 5e-6 / variance.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp

from gdistill import errors
from gdistill.convert import folding
from gdistill.core import types
from gdistill.recipe import settings as recipes

_OF = "gdistill's pixel U-Net in diffusers"
_DOWN = ('ResnetDownsampleBlock2D', 'SimpleCrossAttnDownBlock2D')
_UP = ('ResnetUpsampleBlock2D', 'SimpleCrossAttnUpBlock2D')

# Name of a layer in models.unet -> name of the layer in diffusers.
_ENDS = {
  'conv_in': 'conv_in',
  'time0': 'time_embedding.linear_1',
  'time1': 'time_embedding.linear_2',
  'norm_out': 'conv_norm_out',
  'conv_out': 'conv_out',
}
_IN_RESNET = {'norm1': 'norm1', 'conv1': 'conv1', 'norm2': 'norm2', 'conv2': 'conv2'}
_IN_ATTENTION = {'norm': 'group_norm', 'q': 'to_q', 'k': 'to_k', 'v': 'to_v', 'out': 'to_out.0'}


def state_from(
  params: Mapping[str, Any], settings: recipes.Model
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """Returns (diffusers' config, {'conv_in.weight': array, ...}) of the pixel U-Net `params`.

  The exported network takes w if `params` has 'w_proj'. Raises ConfigError if a
  UNet2DConditionModel cannot have the features in `settings`.
  """
  config = _config(settings, takes_w='w_proj' in params)
  params = jax.tree.map(lambda a: np.asarray(a, np.float32), dict(params))
  state: dict[str, np.ndarray] = {}
  for ours, theirs in _ENDS.items():
    _put(state, theirs, params[ours])
  for ours, theirs in _blocks(config):
    if 'attn' in ours:
      _put_attention(state, theirs, params[ours])
    else:
      _put_resnet(state, theirs, params[ours])
  turn = _turn(settings.channels)
  first = 'time_embedding.linear_1.weight'
  state[first] = _float32(state[first] @ turn.T)
  if 'w_proj' in params:
    state['time_embedding.cond_proj.weight'] = _float32(turn @ params['w_proj']['kernel'].T)
  rows = params['label']['kernel']
  state['class_embedding.weight'] = np.concatenate([rows, np.zeros_like(rows[:1])])
  return config, state


def params_from(config: Mapping[str, Any], state: Mapping[str, np.ndarray]) -> dict:
  """Returns the Flax parameters that state_from exported as (`config`, `state`).

  All parameters are equal to the exported parameters bit for bit, except time0 and w_proj: these
  two layers were rotated for diffusers and agree to 1e-6. Raises ConfigError with the name of the
  first array that is missing from `state` or that the network does not have.
  """
  state, params = dict(state), {}
  for ours, theirs in _ENDS.items():
    params[ours] = _taken(state, theirs)
  for ours, theirs in _blocks(config):
    take = _taken_attention if 'attn' in ours else _taken_resnet
    params[ours] = take(state, theirs)
  turn = _turn(config['block_out_channels'][0])
  params['time0']['kernel'] = _float32(turn.T @ params['time0']['kernel'])
  if config['time_cond_proj_dim']:
    weight = folding.taken(state, 'time_embedding.cond_proj.weight', _OF)
    params['w_proj'] = {'kernel': _float32(weight.T @ turn)}
  rows = folding.taken(state, 'class_embedding.weight', _OF)
  params['label'] = {'kernel': _float32(rows[:-1] - rows[-1])}
  params['time1']['bias'] = _float32(params['time1']['bias'] + rows[-1])
  if state:
    raise errors.ConfigError(f'{min(state)!r} is not an array of {_OF}; export the round again')
  return params


def logsnr_at(index: types.PerExample) -> types.PerExample:
  """-2 log tan(phi), phi = (pi/2) (i + 1) / 1000: the logsnr at timestep i of an exported network.

  logsnr_at(1000 t - 1) equals core.schedule.cosine at time t, except for an error of 5e-5 in phi,
  because core.schedule limits logsnr to +-20. A scheduler of diffusers with abar_i = cos(phi)^2 has
  the same noise level at timestep i as the exported network.
  """
  phi = 0.5 * jnp.pi * (index + 1.0) / 1000.0
  # `rest` is pi/2 - phi; this form has no cancellation near phi = pi/2.
  rest = 0.5 * jnp.pi * (999.0 - index) / 1000.0
  return -2.0 * (jnp.log(jnp.sin(phi)) - jnp.log(jnp.sin(rest)))


def _config(settings: recipes.Model, takes_w: bool) -> dict[str, Any]:
  if settings.multipliers[0] != 1:
    raise errors.ConfigError(
      f'model.multipliers={settings.multipliers} must begin with 1: diffusers '
      'has no other networks; multiply model.channels by the first multiplier instead'
    )
  for name, value in (('freq_shift', 1.0), ('cos_first', False), ('learned_sigma', False)):
    if (mine := getattr(settings, name)) != value:
      raise errors.ConfigError(
        f'model.{name}={mine} is not {value}, which an export to diffusers needs; train '
        f'again with model.{name}={value}'
      )
  levels = range(len(settings.multipliers))
  attends = [settings.image_size >> i in settings.attention_resolutions for i in levels]
  return dict(
    _class_name='UNet2DConditionModel',
    sample_size=settings.image_size,
    in_channels=settings.image_channels,
    out_channels=settings.image_channels,
    flip_sin_to_cos=False,
    freq_shift=1,
    down_block_types=[_DOWN[attends[i]] for i in levels],
    mid_block_type='UNetMidBlock2DSimpleCrossAttn',
    up_block_types=[_UP[attends[i]] for i in reversed(levels)],
    block_out_channels=[settings.channels * m for m in settings.multipliers],
    layers_per_block=settings.num_blocks,
    norm_num_groups=settings.groups,
    norm_eps=settings.epsilon,
    cross_attention_dim=1,
    attention_head_dim=_head_dims(settings, attends),
    resnet_time_scale_shift='scale_shift',
    num_class_embeds=settings.num_classes + 1,
    time_embedding_dim=settings.emb_channels,
    time_cond_proj_dim=settings.w_features if takes_w else None,
  )


def _head_dims(settings: recipes.Model, attends: list[bool]) -> list[int]:
  """Returns diffusers' attention_head_dim: the channels of an attention head, one entry a level.

  diffusers reads entry i of attention_head_dim twice: for level i of the down path, and for the
  i-th block of the up path, which is level (last - i). Raises ConfigError if an entry would need
  two values.
  """
  last, wanted = len(attends) - 1, {}
  for level, attention in enumerate(attends):
    channels = settings.channels * settings.multipliers[level]
    dim = settings.head_dim or channels // settings.heads
    if attention:
      wanted.setdefault(level, set()).add(dim)
      wanted.setdefault(last - level, set()).add(dim)
    if level == last:
      wanted.setdefault(level, set()).add(dim)
  for dims in wanted.values():
    if len(dims) > 1:
      raise errors.ConfigError(
        f'model.heads={settings.heads} makes heads of {sorted(dims)} channels, and '
        'diffusers has room for only one of these numbers; set model.heads=None and model.head_dim '
        'to the channels of a head, and train again'
      )
  return [min(wanted.get(level, {1})) for level in range(len(attends))]


def _blocks(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
  """Yields (models.unet's name, diffusers' name) of each residual, resampling, attention block."""
  last = len(config['block_out_channels']) - 1
  for level, kind in enumerate(config['down_block_types']):
    for i in range(config['layers_per_block']):
      yield f'down{level}_block{i}', f'down_blocks.{level}.resnets.{i}'
      if kind == _DOWN[1]:
        yield f'down{level}_attn{i}', f'down_blocks.{level}.attentions.{i}'
    if level != last:
      yield f'down{level}_resample', f'down_blocks.{level}.downsamplers.0'
  yield 'mid_block0', 'mid_block.resnets.0'
  yield 'mid_attn', 'mid_block.attentions.0'
  yield 'mid_block1', 'mid_block.resnets.1'
  for place, kind in enumerate(config['up_block_types']):
    level = last - place
    for i in range(config['layers_per_block'] + 1):
      yield f'up{level}_block{i}', f'up_blocks.{place}.resnets.{i}'
      if kind == _UP[1]:
        yield f'up{level}_attn{i}', f'up_blocks.{place}.attentions.{i}'
    if level:
      yield f'up{level}_resample', f'up_blocks.{place}.upsamplers.0'


def _turn(dim: int) -> np.ndarray:
  """Returns the rotation M of timestep embeddings: features(i + 1) = features(i) @ M.

  M is orthogonal, [dim, dim] float64. features(i) is the embedding of timestep i: dim/2 sines, then
  dim/2 cosines.
  """
  half = dim // 2
  f = np.exp(-np.log(10_000.0) / (half - 1) * np.arange(half))
  sin, cos = np.diag(np.sin(f)), np.diag(np.cos(f))
  return np.block([[cos, -sin], [sin, cos]])


def _put(state: dict, name: str, layer: Mapping[str, np.ndarray]) -> None:
  for kind, a in layer.items():
    if kind == 'kernel':
      state[f'{name}.weight'] = a.T if a.ndim == 2 else a.transpose(3, 2, 0, 1)
    else:
      state[f'{name}.{"weight" if kind == "scale" else "bias"}'] = a


def _put_resnet(state: dict, name: str, block: Mapping[str, Any]) -> None:
  for ours, theirs in _IN_RESNET.items():
    _put(state, f'{name}.{theirs}', block[ours])
  scale, shift = block['emb_scale'], block['emb_shift']
  joint = {kind: np.concatenate([scale[kind], shift[kind]], axis=-1) for kind in scale}
  _put(state, f'{name}.time_emb_proj', joint)
  if 'shortcut' in block:
    shortcut = block['shortcut']
    _put(state, f'{name}.conv_shortcut', {**shortcut, 'kernel': shortcut['kernel'][None, None]})


def _put_attention(state: dict, name: str, block: Mapping[str, Any]) -> None:
  width = len(block['norm']['bias'])
  zero = np.zeros(width, np.float32)
  for ours, theirs in _IN_ATTENTION.items():
    _put(state, f'{name}.{theirs}', {'bias': zero, **block[ours]})
  for words in ('add_k_proj', 'add_v_proj'):
    _put(state, f'{name}.{words}', {'kernel': zero[None], 'bias': zero})


def _taken(state: dict, name: str) -> dict[str, np.ndarray]:
  weight, bias = (_float32(folding.taken(state, f'{name}.{k}', _OF)) for k in ('weight', 'bias'))
  if weight.ndim == 1:
    return {'scale': weight, 'bias': bias}
  return {'kernel': weight.T if weight.ndim == 2 else weight.transpose(2, 3, 1, 0), 'bias': bias}


def _taken_resnet(state: dict, name: str) -> dict[str, Any]:
  block = {ours: _taken(state, f'{name}.{theirs}') for ours, theirs in _IN_RESNET.items()}
  joint = _taken(state, f'{name}.time_emb_proj')
  halves = {kind: np.split(a, 2, axis=-1) for kind, a in joint.items()}
  for i, ours in enumerate(('emb_scale', 'emb_shift')):
    block[ours] = {kind: parts[i] for kind, parts in halves.items()}
  if f'{name}.conv_shortcut.weight' in state:
    shortcut = _taken(state, f'{name}.conv_shortcut')
    block['shortcut'] = {**shortcut, 'kernel': shortcut['kernel'][0, 0]}
  return block


def _taken_attention(state: dict, name: str) -> dict[str, Any]:
  block = {ours: _taken(state, f'{name}.{theirs}') for ours, theirs in _IN_ATTENTION.items()}
  for words in ('add_k_proj', 'add_v_proj'):  # without text tokens these layers have no effect
    _taken(state, f'{name}.{words}')
  return {**block, 'k': {'kernel': block['k']['kernel']}}


def _float32(a: np.ndarray) -> np.ndarray:
  return np.asarray(a, np.float32)
