"""Converts Stable Diffusion's U-Net (diffusers, latent diffusion) to models.latent_unet and back.

diffusers' config.json of the U-Net is converted too. Latent diffusion's ImageNet network, which has
the same layers as Stable Diffusion's U-Net, is converted by the same functions.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import traverse_util

from gdistill.convert import folding
from gdistill.models import latent_unet

# Latent diffusion's name for the table of class embeddings. diffusers' network has no array for the
# table, so the exporter writes the table to a separate file.
CLASSES = 'cond_stage_model.embedding.weight'
_LDM, _LDM_EMA = 'model.diffusion_model.', 'model_ema.diffusion_model'


class _Stored(NamedTuple):
  """How one kind of weight, such as a convolution, is stored in Flax and in torch.

  `name` is the weight's name in Flax, `ours` converts a torch array to Flax, and `theirs` converts
  a Flax array to torch.
  """

  name: str
  ours: Callable[[np.ndarray], np.ndarray]
  theirs: Callable[[np.ndarray], np.ndarray]


_LINEAR = _Stored('kernel', np.transpose, np.transpose)
_CONV = _Stored('kernel', lambda a: a.transpose(2, 3, 1, 0), lambda a: a.transpose(3, 2, 0, 1))
_POINT = _Stored('kernel', lambda a: a[:, :, 0, 0].T, lambda a: a.T[:, :, None, None])
_NORM = _Stored('scale', np.asarray, np.asarray)
_BIAS = _Stored('bias', np.asarray, np.asarray)
_BARE = _Stored('', np.asarray, np.asarray)

# Each row describes a layer: (name in models.latent_unet, name in diffusers, name in latent
# diffusion, how the weight is stored).
_ENDS = (
  ('conv_in', 'conv_in', 'input_blocks.0.0', _CONV),
  ('time0', 'time_embedding.linear_1', 'time_embed.0', _LINEAR),
  ('time1', 'time_embedding.linear_2', 'time_embed.2', _LINEAR),
  # latent diffusion has no layer w_proj, so the third name in this row is made up
  ('w_proj', 'time_embedding.cond_proj', 'time_embed.cond_proj', _LINEAR),
  ('norm_out', 'conv_norm_out', 'out.0', _NORM),
  ('conv_out', 'conv_out', 'out.2', _CONV),
)
_BLOCK = (
  ('norm1', 'norm1', 'in_layers.0', _NORM),
  ('conv1', 'conv1', 'in_layers.2', _CONV),
  ('emb_shift', 'time_emb_proj', 'emb_layers.1', _LINEAR),
  ('norm2', 'norm2', 'out_layers.0', _NORM),
  ('conv2', 'conv2', 'out_layers.3', _CONV),
  ('shortcut', 'conv_shortcut', 'skip_connection', _POINT),
)
_RESAMPLE = (('', '', '', _CONV),)
# Each row describes a layer of a transformer: (name in models.latent_unet, the common name in
# diffusers and latent diffusion, how the weight is stored).
_LAYER = (
  *((f'norm{i}', f'norm{i}', _NORM) for i in (1, 2, 3)),
  *((f'attn{i}/{name}', f'attn{i}.to_{name}', _LINEAR) for i in (1, 2) for name in 'qkv'),
  *((f'attn{i}/out', f'attn{i}.to_out.0', _LINEAR) for i in (1, 2)),
  ('ff0', 'ff.net.0.proj', _LINEAR),
  ('ff1', 'ff.net.2', _LINEAR),
)

# Fields of diffusers' config.json that settings_from reads, with diffusers' defaults.
_READ = dict(
  in_channels=4, out_channels=4, block_out_channels=(320, 640, 1280, 1280), layers_per_block=2,
  down_block_types=('CrossAttnDownBlock2D',) * 3 + ('DownBlock2D',),
  up_block_types=('UpBlock2D',) + ('CrossAttnUpBlock2D',) * 3, cross_attention_dim=1280,
  transformer_layers_per_block=1, attention_head_dim=8, use_linear_projection=False,
  norm_num_groups=32, norm_eps=1e-5, dropout=0.0, time_cond_proj_dim=None, time_embedding_dim=None,
)  # fmt: skip
# Fields of diffusers' config.json that must have these values; where the value is False, null is
# accepted too.
_FIXED = dict(
  center_input_sample=False, flip_sin_to_cos=True, freq_shift=0,
  mid_block_type='UNetMidBlock2DCrossAttn', only_cross_attention=False, downsample_padding=1,
  mid_block_scale_factor=1, act_fn='silu', reverse_transformer_layers_per_block=None,
  encoder_hid_dim=None, encoder_hid_dim_type=None, num_attention_heads=None,
  dual_cross_attention=False, class_embed_type=None, num_class_embeds=None,
  addition_embed_type=None, addition_time_embed_dim=None, resnet_skip_time_act=False,
  resnet_time_scale_shift='default', resnet_out_scale_factor=1, time_embedding_type='positional',
  time_embedding_act_fn=None, timestep_post_act=None, conv_in_kernel=3, conv_out_kernel=3,
  projection_class_embeddings_input_dim=None, attention_type='default',
  class_embeddings_concat=False, mid_block_only_cross_attention=None, cross_attention_norm=None,
)  # fmt: skip
# Fields of diffusers' config.json that must have the same value for all levels of the U-Net.
_ONE_FOR_ALL = (
  'layers_per_block', 'cross_attention_dim', 'transformer_layers_per_block', 'norm_num_groups',
)  # fmt: skip
# Fields of diffusers' config.json that may have any value, because they do not change the output of
# models.latent_unet. upcast_attention is such a field: the softmax is always in float32.
_WITHOUT_EFFECT = ('sample_size', 'upcast_attention', 'addition_embed_type_num_heads')


def params_from(state: Mapping[str, np.ndarray], net: latent_unet.LatentUNet) -> dict:
  """Returns float32 parameters from {'down_blocks.0.resnets.0.conv1.weight': [O, I, H, W], ...}.

  No published file holds the parameter `null_text`, so `null_text` is zero until the caller sets it
  to the embedding of the text ''. Raises ConfigError with a list of the arrays that are missing
  from `state`, that `net` does not have, or whose shape differs from that in `net`.
  """
  folding.check({name: np.shape(array) for name, array in state.items()}, state_shapes(net))
  params = {
    row.path: row.stored.ours(np.asarray(state[row.theirs], np.float32)) for row in _rows(net)
  }
  if net.context == 'text':
    params['null_text'] = np.zeros(_shapes(net)['null_text'], np.float32)
  return traverse_util.unflatten_dict(params, sep='/')


def state_from(params: Mapping, net: latent_unet.LatentUNet) -> dict[str, np.ndarray]:
  """Returns {diffusers' name: array} of the parameters for a UNet2DConditionModel.

  If `params` has a table of class embeddings, the table is returned under the name in the constant
  CLASSES. The parameter `null_text` is left out; `params_from` restores all other parameters from
  the returned arrays.
  """
  flat = traverse_util.flatten_dict(params, sep='/')
  return {
    row.theirs: np.ascontiguousarray(row.stored.theirs(np.asarray(flat[row.path])))
    for row in _rows(net)
  }


def state_shapes(net: latent_unet.LatentUNet) -> dict[str, tuple[int, ...]]:
  """Returns {diffusers' name: shape} of the arrays that `state_from` returns for `net`."""
  shapes = _shapes(net)
  hollow = {row: np.broadcast_to(np.float32(0), shapes[row.path]) for row in _rows(net)}
  return {row.theirs: row.stored.theirs(array).shape for row, array in hollow.items()}


def ldm_params_from(state: Mapping[str, np.ndarray], net: latent_unet.LatentUNet) -> dict:
  """Returns Flax parameters of `net` from a checkpoint with latent diffusion's array names.

  `state` is {'model.diffusion_model.input_blocks.0.0.weight': [O, I, H, W], ...}.
  """
  return params_from(ldm_renamed(state, net), net)


def ldm_renamed(
  state: Mapping[str, np.ndarray], net: latent_unet.LatentUNet
) -> dict[str, np.ndarray]:
  """Returns the U-Net's arrays in a checkpoint of latent diffusion, under diffusers' names.

  If the checkpoint holds EMA weights, the EMA weights are returned, because the authors sample with
  EMA weights. Arrays of the autoencoder and of the text encoder are left out. Arrays of the U-Net
  that `net` does not have keep their names, so that an error can list them.
  """
  names = ldm_names(net)
  names = {_LDM + ldm: theirs for ldm, theirs in names.items()} | {
    _LDM_EMA + ldm.replace('.', ''): theirs for ldm, theirs in names.items()
  }
  prefix = _LDM_EMA if any(name.startswith(_LDM_EMA) for name in state) else _LDM
  of_network = {n: array for n, array in state.items() if n.startswith(prefix)}
  renamed = {names.get(n, n): array for n, array in of_network.items()}
  if net.context == 'class' and CLASSES in state:
    renamed[CLASSES] = state[CLASSES]
  return renamed


def ldm_names(net: latent_unet.LatentUNet) -> dict[str, str]:
  """Returns {latent diffusion's name: diffusers' name} of the arrays of `net`.

  For example, 'input_blocks.0.0.weight' is 'conv_in.weight' in diffusers.
  """
  return {row.ldm: row.theirs for row in _rows(net) if row.theirs != CLASSES}


def settings_from(config: Mapping[str, Any], num_classes: int = 0) -> dict[str, Any]:
  """Returns the fields of a LatentUNet from `config`, the config.json of a UNet2DConditionModel.

  `num_classes` > 0 makes a network whose context is a row of a table of classes, and 0 a network
  whose context is a text: config.json does not say which of the two contexts the network has.
  Raises ConfigError with the name of the first field that LatentUNet does not support.
  """
  folding.refuse_others(config, _FIXED, (*_READ, *_WITHOUT_EFFECT))
  read = {**_READ, **config}
  for field in _ONE_FOR_ALL:
    read[field] = folding.same(read[field])
  _check_types(read)
  extra = read['in_channels'] - read['out_channels']
  if extra < 0:
    least = f'at least out_channels={read["out_channels"]}'
    folding.refuse('in_channels', read['in_channels'], least)
  return dict(
    channels=tuple(read['block_out_channels']),
    num_blocks=read['layers_per_block'],
    attention=_attention(read),
    heads=_heads(read),
    context='class' if num_classes else 'text',
    context_dim=read['cross_attention_dim'],
    num_classes=num_classes,
    transformer_depth=read['transformer_layers_per_block'],
    linear_projection=bool(read['use_linear_projection']),
    out_channels=read['out_channels'],
    extra_channels=extra,
    emb_channels=read['time_embedding_dim'] or 0,
    groups=read['norm_num_groups'],
    epsilon=read['norm_eps'],
    dropout=read['dropout'],
    w_features=read['time_cond_proj_dim'] or 0,
  )


def config_from(net: latent_unet.LatentUNet, sample_size: int) -> dict[str, Any]:
  """Returns the config.json with which diffusers' UNet2DConditionModel computes the same as `net`.

  `sample_size` is the side of the latents. Raises ConfigError if a UNet2DConditionModel cannot have
  the features of `net`.
  """
  _published(net)
  if net.w_features and net.w_scale != 1000.0:
    folding.refuse('w_scale', net.w_scale, "1000.0, by which diffusers' pipelines multiply w")
  return {
    '_class_name': 'UNet2DConditionModel',
    **_FIXED,
    'sample_size': sample_size,
    'in_channels': net.out_channels + net.extra_channels,
    'out_channels': net.out_channels,
    'block_out_channels': list(net.channels),
    'layers_per_block': net.num_blocks,
    'down_block_types': [_kind(cross, 'Down') for cross in net.attention],
    'up_block_types': [_kind(cross, 'Up') for cross in reversed(net.attention)],
    'cross_attention_dim': net.context_dim,
    'transformer_layers_per_block': net.transformer_depth,
    'attention_head_dim': list(net.heads),
    'use_linear_projection': net.linear_projection,
    'norm_num_groups': net.groups,
    'norm_eps': net.epsilon,
    'dropout': net.dropout,
    'time_cond_proj_dim': net.w_features or None,
    'time_embedding_dim': net.emb_channels or None,
  }


class _Row(NamedTuple):
  """One array of the U-Net: its path, its published names and how it is stored.

  `path` is the array's path in the Flax parameters, `theirs` is the array's name in diffusers,
  `ldm` is the array's name in latent diffusion, and `stored` converts the array between Flax and
  torch.
  """

  path: str
  theirs: str
  ldm: str
  stored: _Stored


def _rows(net: latent_unet.LatentUNet) -> list[_Row]:
  """Returns a _Row for each array of `net` except `null_text`, which no published file holds."""
  shapes, rows = _shapes(net), []
  for ours, theirs, ldm, stored in _layers(net):
    rows.append(_Row(f'{ours}/{stored.name}', f'{theirs}.weight', f'{ldm}.weight', stored))
    rows.append(_Row(f'{ours}/bias', f'{theirs}.bias', f'{ldm}.bias', _BIAS))
  rows.append(_Row('class_table', CLASSES, CLASSES, _BARE))
  return [row for row in rows if row.path in shapes]


def _layers(net: latent_unet.LatentUNet) -> Iterator[tuple[str, str, str, _Stored]]:
  """Yields (name in models.latent_unet, in diffusers, in latent diffusion, storage) of each layer.

  The yielded layers include some that `net` does not have, such as 'w_proj' or a shortcut.
  """
  yield from _ENDS
  for parts, *places in _places(net):
    for *names, stored in parts:
      ours, theirs, ldm = (
        sep.join(filter(None, pair))
        for sep, pair in zip('/..', zip(places, names, strict=True), strict=True)
      )
      yield ours, theirs, ldm, stored


def _places(net: latent_unet.LatentUNet) -> Iterator[tuple[tuple, str, str, str]]:
  """Yields (layers, name in models.latent_unet, in diffusers, in latent diffusion) of each block.

  diffusers numbers the blocks within a level, latent diffusion numbers them through all levels.
  """
  transformer, last, n = _transformer(net), len(net.channels) - 1, 1
  for level in range(last + 1):
    theirs = f'down_blocks.{level}'
    for i in range(net.num_blocks):
      yield _BLOCK, f'down{level}_block{i}', f'{theirs}.resnets.{i}', f'input_blocks.{n}.0'
      yield transformer, f'down{level}_attn{i}', f'{theirs}.attentions.{i}', f'input_blocks.{n}.1'
      n += 1
    down = f'{theirs}.downsamplers.0.conv'
    yield _RESAMPLE, f'down{level}_resample', down, f'input_blocks.{n}.0.op'
    n += 1
  yield _BLOCK, 'mid_block0', 'mid_block.resnets.0', 'middle_block.0'
  yield transformer, 'mid_attn', 'mid_block.attentions.0', 'middle_block.1'
  yield _BLOCK, 'mid_block1', 'mid_block.resnets.1', 'middle_block.2'
  n = 0
  for level in range(last, -1, -1):
    theirs = f'up_blocks.{last - level}'
    for i in range(net.num_blocks + 1):
      ldm = f'output_blocks.{n}'
      yield _BLOCK, f'up{level}_block{i}', f'{theirs}.resnets.{i}', f'{ldm}.0'
      yield transformer, f'up{level}_attn{i}', f'{theirs}.attentions.{i}', f'{ldm}.1'
      n += 1
    up = f'{theirs}.upsamplers.0.conv'
    yield _RESAMPLE, f'up{level}_resample', up, f'{ldm}.{1 + net.attention[level]}.conv'


def _transformer(net: latent_unet.LatentUNet) -> tuple:
  """Returns the layers of one transformer of `net`: a tuple like those in _ENDS for each layer."""
  projection = _LINEAR if net.linear_projection else _POINT
  layers = tuple(
    (f'layer{i}/{ours}', *(f'transformer_blocks.{i}.{theirs}',) * 2, stored)
    for i in range(net.transformer_depth)
    for ours, theirs, stored in _LAYER
  )
  ends = tuple((name, name, name, projection) for name in ('proj_in', 'proj_out'))
  return (('norm', 'norm', 'norm', _NORM), *ends, *layers)


@functools.lru_cache
def _shapes(net: latent_unet.LatentUNet) -> dict[str, tuple[int, ...]]:
  """Returns {'down0_block0/conv1/kernel': shape, ...} of the Flax parameters of `net`."""
  _published(net)
  given = latent_unet.example(net, 2 ** (len(net.channels) - 1), net.out_channels)
  params = jax.eval_shape(net.init, jax.random.key(0), *given)['params']
  return {k: v.shape for k, v in traverse_util.flatten_dict(params, sep='/').items()}


def _check_types(read: Mapping[str, Any]) -> None:
  """Raises ConfigError for the first field of config.json with a value that no network can have."""
  count, one = 'a whole number of at least 1', 'one whole number of at least 1 for all levels'
  kinds = {
    **dict.fromkeys(('in_channels', 'out_channels'), (folding.is_count, count)),
    **dict.fromkeys(_ONE_FOR_ALL, (folding.is_count, one)),
    **{field: (lambda v: not v or folding.is_count(v), f'null or {count}')
       for field in ('time_cond_proj_dim', 'time_embedding_dim')},
    'block_out_channels': (folding.are_counts, 'a list of whole numbers of at least 1'),
    **{field: (lambda v: isinstance(v, (list, tuple)), 'a list')
       for field in ('down_block_types', 'up_block_types')},
    'use_linear_projection': (lambda v: v in (True, False, None), 'true or false'),
    'norm_eps': (lambda v: folding.is_share(v) and v > 0, 'a number above 0 and below 1'),
    'dropout': (folding.is_share, 'a number of at least 0 and below 1'),
  }  # fmt: skip
  for field, (fits, remedy) in kinds.items():
    if not fits(read[field]):
      folding.refuse(field, read[field], remedy)


def _attention(config: Mapping[str, Any]) -> tuple[bool, ...]:
  """Returns a tuple of bools, one a level: True if the level has cross-attention.

  Raises ConfigError if a level has cross-attention on the down path only or on the up path only.
  """
  attention = tuple(kind == _kind(True, 'Down') for kind in config['down_block_types'])
  down = [_kind(cross, 'Down') for cross in attention]
  up = [_kind(cross, 'Up') for cross in reversed(attention)]
  for field, expected in (('down_block_types', down), ('up_block_types', up)):
    if list(config[field]) != expected or len(expected) != len(config['block_out_channels']):
      folding.refuse(field, config[field], f'{expected}, an entry for each of block_out_channels')
  return attention


def _heads(config: Mapping[str, Any]) -> tuple[int, ...]:
  """Returns the number of attention heads of each level.

  Despite the name, `attention_head_dim` in diffusers' config.json holds the numbers of heads.
  """
  channels, heads = config['block_out_channels'], config['attention_head_dim']
  heads = tuple(heads) if isinstance(heads, (list, tuple)) else (heads,) * len(channels)
  fits = folding.are_counts(heads) and len(heads) == len(channels)
  if not fits or any(c % h for c, h in zip(channels, heads, strict=True)):
    folding.refuse('attention_head_dim', heads, f'numbers of heads that divide {channels}')
  return heads


def _kind(cross: bool, way: str) -> str:
  """Returns the name of diffusers' class for a level of the U-Net, such as 'CrossAttnDownBlock2D'.

  `way` is 'Down' or 'Up'; `cross` says whether the level has cross-attention.
  """
  return f'{"CrossAttn" if cross else ""}{way}Block2D'


def _published(net: latent_unet.LatentUNet) -> None:
  """Raises ConfigError if `net` has no cross-attention or no given number of output channels."""
  if net.context == 'none':
    folding.refuse('context', net.context, "'text' or 'class': diffusers has cross-attention only")
  if not net.out_channels:
    folding.refuse('out_channels', 0, 'the number of channels of z')
