"""Reads published autoencoders (diffusers, latent diffusion, TAESD) as networks of models.vae."""

import dataclasses
import hashlib
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax import traverse_util
from jax import numpy as jnp

from gdistill import errors
from gdistill.convert import files
from gdistill.convert import folding
from gdistill.models import vae


@dataclasses.dataclass(frozen=True, eq=False)
class Autoencoder:
  """A pretrained autoencoder: its network and parameters, and the shift and scale of its latents.

  The diffusion model works on (z - shift) * scale, where z are the autoencoder's own latents.
  """

  kind: str  # kind of autoencoder: 'kl' (Gaussian), 'vq' (with a codebook) or 'tiny' (TAESD)
  net: nn.Module
  params: Any
  scale: float
  shift: float = 0.0

  @property
  def factor(self) -> int:
    """Returns the side of an image divided by the side of its latents."""
    return self.net.factor

  @property
  def latent_channels(self) -> int:
    return self.net.latent_channels

  @property
  def digest(self) -> str:
    """Returns 16 hex digits of sha256 over the sorted names and the bytes of the parameters."""
    found = hashlib.sha256()
    for name, value in sorted(traverse_util.flatten_dict(self.params, sep='/').items()):
      found.update(name.encode())
      found.update(np.asarray(value).tobytes())
    return found.hexdigest()[:16]

  def encode(self, params: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Encodes images `x` in [-1, 1]: returns shifted, scaled mean and scaled std of the latents."""
    mean, std = self.net.apply({'params': params}, x, method='encode')
    return (mean - self.shift) * self.scale, std * self.scale

  def decode(self, params: Any, z: jax.Array) -> jax.Array:
    """Decodes shifted and scaled latents `z` to images, nominally in [-1, 1] but not clipped."""
    return self.net.apply({'params': params}, z / self.scale + self.shift, method='decode')


def read(path: str | pathlib.Path) -> Autoencoder:
  """Reads an autoencoder from a folder, from one file, or from a pair of files.

  - A folder of diffusers holds config.json and the weights that `files.find` finds.
  - A .safetensors file with latent diffusion's array names may hold only the autoencoder or all
    networks of Stable Diffusion. If the file is of latent diffusion, the sizes of the autoencoder
    are read from the shapes of the arrays. The scale of the latents is the array 'scale_factor' in
    a file of latent diffusion; without 'scale_factor' the scale is 0.18215 for a Gaussian
    autoencoder (KL) and 1 for an autoencoder with a codebook (VQ).
  - TAESD's pair of files is <path>_encoder.safetensors and <path>_decoder.safetensors, or the only
    pair with such names in the folder `path`.

  Raises DataError if `path` is neither a folder of diffusers, a file of latent diffusion nor a pair
  of TAESD, or if a file is unreadable. Raises ConfigError if a file is a pickle of torch (.pt,
  .ckpt), or if models.vae has no network with the arrays of the file; the error lists the arrays
  that do not fit.
  """
  path = pathlib.Path(path)
  if path.is_file():
    return _read_file(path)
  if (path / 'config.json').is_file():
    return _read_folder(path)
  pairs = sorted(path.glob('*_encoder.safetensors')) if path.is_dir() else []
  stem = str(pairs[0]).removesuffix('_encoder.safetensors') if len(pairs) == 1 else str(path)
  if pathlib.Path(f'{stem}_encoder.safetensors').is_file():
    return _read_pair(stem)
  raise errors.DataError(
    f'{path} holds no autoencoder; give a folder with config.json and {_WEIGHTS}, a .safetensors '
    'file of latent diffusion, or the path of a pair up to _encoder.safetensors'
  )


def write(folder: str | pathlib.Path, autoencoder: Autoencoder) -> None:
  """Writes config.json and diffusion_pytorch_model.safetensors to `folder`, in diffusers' format.

  diffusers has no class for a vae.Tiny with `pool`, so config.json of such an autoencoder names the
  class AutoencoderTinyPool, which only `read` in this module supports.
  """
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  files.write(folder / _WEIGHTS, state_from(autoencoder.net, autoencoder.params))
  config = _described(autoencoder.kind, autoencoder.net) | {'scaling_factor': autoencoder.scale}
  if autoencoder.kind != 'vq':  # VQModel in diffusers has no field shift_factor
    config['shift_factor'] = autoencoder.shift
  (folder / 'config.json').write_text(json.dumps(config, indent=2) + '\n')


def params_from(net: nn.Module, state: Mapping[str, np.ndarray], of: str = 'the state') -> dict:
  """Returns Flax parameters of `net` from {'encoder.conv_in.weight': [O, I, H, W], ...}.

  Raises ConfigError with a list of the arrays that are missing from `state`, that `net` does not
  have, or whose shape differs from that in `net`. `of` names the source of the arrays in the error.
  """
  table, params = _table(net), {}
  faults = [f'{name} is missing' for name in sorted(table.keys() - state.keys())]
  faults += [f'{name} is not expected' for name in sorted(state.keys() - table.keys())]
  for name in sorted(table.keys() & state.keys()):
    (path, shape), value = table[name], np.asarray(state[name], np.float32)
    if value.shape != shape:
      faults.append(f'{name} is {value.shape} and should be {shape}')
    params[path] = _turned(value, (2, 3, 1, 0)) if path[-1] == 'kernel' else value
  if faults:
    more = f'; and {len(faults) - _LISTED} more' if len(faults) > _LISTED else ''
    raise errors.ConfigError(
      f'{of} does not hold the arrays of a models.vae.{type(net).__name__}: '
      f'{"; ".join(faults[:_LISTED])}{more}; download the weights and their config.json again'
    )
  return traverse_util.unflatten_dict(params)


def state_from(net: nn.Module, params: Any) -> dict[str, np.ndarray]:
  """Returns {'encoder.conv_in.weight': [O, I, H, W], ...}, the inverse of `params_from`."""
  flat, state = traverse_util.flatten_dict(params), {}
  for name, (path, _) in _table(net).items():
    value = np.asarray(flat[path])
    value = _turned(value, (3, 2, 0, 1)) if path[-1] == 'kernel' else value
    state[name] = np.ascontiguousarray(value)
  return state


def renamed(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Returns the autoencoder's arrays in `state`, with diffusers' names for latent diffusion's.

  Arrays that already have diffusers' names are not renamed; only the names that diffusers gave to
  attention layers before 2023 ('query', 'proj_attn') become today's names ('to_q', 'to_out.0').
  Arrays of the autoencoder's training losses and of the diffusion model are left out.
  """
  if any(name.startswith(_WITHIN) for name in state):
    state = {n.removeprefix(_WITHIN): v for n, v in state.items() if n.startswith(_WITHIN)}
  up = re.compile(r'(?<=^decoder\.up\.)\d+')
  last = max((int(found[0]) for name in state if (found := up.search(name))), default=0)
  result = {}
  for name, value in state.items():
    if name.startswith('loss.'):
      continue
    # Level 0 of the decoder is next to the pixels in latent diffusion, but next to the latents in
    # diffusers.
    name = up.sub(lambda found: str(last - int(found[0])), name)
    for pattern, replacement in _NAMES:
      name = re.sub(pattern, replacement, name)
    # latent diffusion stores the matrices of attention layers as 1x1 convolutions, [O, I, 1, 1]
    pixelwise = '.attentions.' in name and value.ndim == 4
    result[name] = value[:, :, 0, 0] if pixelwise else value
  return result


_WEIGHTS = 'diffusion_pytorch_model.safetensors'
_LISTED = 8
_WITHIN = 'first_stage_model.'
_NAMES = (
  (r'\.(down|up)\.(\d+)\.block\.', r'.\1_blocks.\2.resnets.'),
  (r'\.(down|up)\.(\d+)\.(down|up)sample\.', r'.\1_blocks.\2.\3samplers.0.'),
  (r'\.mid\.block_1\.', '.mid_block.resnets.0.'),
  (r'\.mid\.block_2\.', '.mid_block.resnets.1.'),
  (r'\.mid\.attn_1\.norm\.', '.mid_block.attentions.0.group_norm.'),
  (r'\.mid\.attn_1\.([qkv])\.', r'.mid_block.attentions.0.to_\1.'),
  (r'\.mid\.attn_1\.proj_out\.', '.mid_block.attentions.0.to_out.0.'),
  (r'(?<=\.attentions\.0\.)(q|k|v)(uery|ey|alue)\.', r'to_\1.'),
  (r'(?<=\.attentions\.0\.)proj_attn\.', 'to_out.0.'),
  (r'\.nin_shortcut\.', '.conv_shortcut.'),
  (r'\.norm_out\.', '.conv_norm_out.'),
)
_CLASSES = {'kl': vae.KL, 'vq': vae.VQ, 'tiny': vae.Tiny}
_KINDS = {
  'AutoencoderKL': 'kl', 'VQModel': 'vq', 'AutoencoderTiny': 'tiny', 'AutoencoderTinyPool': 'tiny',
}  # fmt: skip
# Field of a network in models.vae -> (field of diffusers' config.json, diffusers' default).
_SIZES = {
  'widths': ('block_out_channels', (64,)),
  'layers': ('layers_per_block', 1),
  'groups': ('norm_num_groups', 32),
  'mid_attention': ('mid_block_add_attention', True),
}
_FIELDS = {
  'kl': _SIZES | {
    'latent_channels': ('latent_channels', 4),
    'quant_conv': ('use_quant_conv', True),
    'post_quant_conv': ('use_post_quant_conv', True),
  },
  'vq': _SIZES | {'latent_channels': ('latent_channels', 3), 'entries': ('num_vq_embeddings', 256)},
  'tiny': {
    'latent_channels': ('latent_channels', 4),
    'blocks_down': ('num_encoder_blocks', (1, 3, 3, 3)),
    'blocks_up': ('num_decoder_blocks', (3, 3, 3, 1)),
  },
}  # fmt: skip
_LISTS = (
  'block_out_channels', 'num_encoder_blocks', 'num_decoder_blocks', 'encoder_block_out_channels',
)  # fmt: skip
_COUNTS = ('layers_per_block', 'norm_num_groups', 'latent_channels', 'num_vq_embeddings')
DEFAULT_SCALE = 0.18215  # diffusers' default of scaling_factor, for AutoencoderKL and for VQModel
# Scale of the latents for each kind of autoencoder without a stated scale. For 'vq' the scale is 1,
# because latent diffusion does not scale the latents of its autoencoders with a codebook.
_SCALES = {'kl': DEFAULT_SCALE, 'vq': 1.0, 'tiny': 1.0}
# Scale of the latents of vae.Tiny with `pool`. The scale gives latents a standard deviation of
# about 1: on 1,000 photographs of 64x64 pixels, the unscaled latents had a standard deviation of
# 0.89 overall and of 0.83 around each channel's mean.
_POOL_SCALE = 1 / 0.85


def _read_folder(folder: pathlib.Path) -> Autoencoder:
  file = folder / 'config.json'
  try:
    config = json.loads(file.read_bytes())
    name = config.get('_class_name')
  except (OSError, ValueError, AttributeError) as e:
    raise errors.DataError(
      f'{file} is unreadable: {errors.brief(e)}; download the file again'
    ) from e
  if name not in list(_KINDS):
    raise errors.ConfigError(
      f'{file}: _class_name is {name!r}; it must be one of {list(_KINDS)}; use such an autoencoder'
    )
  kind = _KINDS[name]
  config = {key: value for key, value in config.items() if value is not None}
  _check_types(config, file)
  net = _net(kind, config, file)
  state = files.weights(files.find(folder, _WEIGHTS))
  params = params_from(net, state if kind == 'tiny' else renamed(state), str(folder))
  scale, shift = config.get('scaling_factor', _SCALES[kind]), config.get('shift_factor', 0.0)
  return Autoencoder(kind, net, params, scale, shift)


def _read_pair(stem: str) -> Autoencoder:
  encoder, decoder = (
    files.weights(pathlib.Path(f'{stem}_{half}.safetensors')) for half in ('encoder', 'decoder')
  )
  state = {f'encoder.layers.{name}': value for name, value in encoder.items()}
  for name, value in decoder.items():
    layer, _, rest = name.partition('.')
    # TAESD's decoder file counts a tanh without weights as layer 0; vae.Tiny does not count the
    # tanh.
    state[f'decoder.layers.{int(layer) - 1 if layer.isdecimal() else layer}.{rest}'] = value
  pool = any('.pool.' in name for name in state)
  first = state.get('decoder.layers.0.weight')
  channels = first.shape[1] if first is not None and first.ndim == 4 else 4
  net = vae.Tiny(channels, pool=pool)
  params = params_from(net, state, f'{stem}_*')
  return Autoencoder('tiny', net, params, _POOL_SCALE if pool else _SCALES['tiny'])


def _read_file(file: pathlib.Path) -> Autoencoder:
  whole = files.weights(file)
  state = renamed(whole)
  try:
    sizes = _measured(state)
  except (KeyError, IndexError) as e:
    raise errors.ConfigError(
      f'{file} has no array {e.args[0]}: it holds no autoencoder; give a file with the '
      'weights of an autoencoder'
    ) from None
  kind = 'vq' if 'entries' in sizes else 'kl'
  net = _CLASSES[kind](**sizes)
  scale = float(whole.get('scale_factor', _SCALES[kind]))
  return Autoencoder(kind, net, params_from(net, state, str(file)), scale)


def _measured(state):
  """Returns the fields of vae.KL or vae.VQ that follow from the names and shapes in `state`."""
  first = 'encoder.down_blocks.{}.resnets.{}.conv1.weight'
  count = lambda name: next(i for i in range(99) if name(i) not in state)
  levels = count(lambda i: first.format(i, 0))
  sizes = {
    'widths': tuple(len(state[first.format(i, 0)]) for i in range(levels)),
    'layers': count(lambda i: first.format(0, i)),
    'latent_channels': state['decoder.conv_in.weight'].shape[1],
    'mid_attention': 'encoder.mid_block.attentions.0.to_q.weight' in state,
  }
  if 'quantize.embedding.weight' in state:
    return sizes | {'entries': len(state['quantize.embedding.weight'])}
  return sizes | {name: f'{name}.weight' in state for name in ('quant_conv', 'post_quant_conv')}


def _net(kind: str, config: Mapping[str, Any], file: pathlib.Path) -> nn.Module:
  fields = {ours: config.get(*theirs) for ours, theirs in _FIELDS[kind].items()}
  fields = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
  if kind == 'tiny':
    fields['width'] = config.get('encoder_block_out_channels', (64,))[0]
    fields['pool'] = config['_class_name'] == 'AutoencoderTinyPool'
  net = _CLASSES[kind](**fields)
  for key, value in _described(kind, net).items():
    if key in config and config[key] != value:
      raise errors.ConfigError(
        f'{file}: {key} is {config[key]!r}, and only {value!r} is supported; choose an autoencoder '
        'with that value'
      )
  return net


def _check_types(config: Mapping[str, Any], file: pathlib.Path) -> None:
  """Raises ConfigError for the first field of config.json with a value that no network can have."""
  widths = config.get('block_out_channels')
  for field, value in config.items():
    if field in _LISTS:
      fits, remedy = folding.are_counts(value), 'a list of whole numbers of at least 1'
    elif field in _COUNTS:
      fits, remedy = folding.is_count(value), 'a whole number of at least 1'
    elif field in ('scaling_factor', 'shift_factor'):
      number = isinstance(value, (int, float)) and not isinstance(value, bool)
      positive = field == 'scaling_factor'
      fits = number and abs(value) < 1e30 and (value > 0 or not positive)
      remedy = f'a finite number{" above 0" if positive else ""}'
    else:
      continue
    if not fits:
      raise errors.ConfigError(
        f'{file}: {field} is {value!r}: it must be {remedy}; download config.json again'
      )
  groups = config.get('norm_num_groups', 32)
  if widths and any(width % groups for width in widths) and 'Tiny' not in config['_class_name']:
    raise errors.ConfigError(
      f'{file}: norm_num_groups is {groups}: it must divide the block_out_channels {widths}; '
      'download config.json again'
    )


def _described(kind: str, net: nn.Module) -> dict:
  """Returns diffusers' config.json of `net`, except scaling_factor and shift_factor."""
  config = {theirs: getattr(net, ours) for ours, (theirs, _) in _FIELDS[kind].items()}
  config = {k: list(v) if isinstance(v, tuple) else v for k, v in config.items()}
  config |= {'in_channels': 3, 'out_channels': 3, 'act_fn': 'relu' if kind == 'tiny' else 'silu'}
  if kind == 'tiny':
    name = 'AutoencoderTinyPool' if net.pool else 'AutoencoderTiny'
    return config | {
      '_class_name': name, 'upsample_fn': 'nearest', 'upsampling_scaling_factor': 2,
      'encoder_block_out_channels': [net.width] * len(net.blocks_down),
      'decoder_block_out_channels': [net.width] * len(net.blocks_up),
    }  # fmt: skip
  config['down_block_types'] = ['DownEncoderBlock2D'] * len(net.widths)
  config['up_block_types'] = ['UpDecoderBlock2D'] * len(net.widths)
  if kind == 'kl':
    return config | {'_class_name': 'AutoencoderKL', 'latents_mean': None, 'latents_std': None}
  return config | {
    '_class_name': 'VQModel', 'vq_embed_dim': net.latent_channels, 'norm_type': 'group',
  }  # fmt: skip


def _table(net: nn.Module) -> dict[str, tuple[tuple[str, ...], tuple[int, ...]]]:
  """Returns {array name in diffusers: (path in the Flax parameters, shape in diffusers)}."""
  x = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  shapes = jax.eval_shape(net.init, jax.random.key(0), x)['params']
  table = {}
  for path, leaf in traverse_util.flatten_dict(shapes).items():
    module = re.sub(r'_(\d+)(?=\.|$)', r'.\1', '.'.join(path[:-1]))
    shape = leaf.shape
    if path[-1] == 'kernel':
      # Flax's shape -> torch's shape: [H, W, I, O] -> [O, I, H, W], [I, O] -> [O, I].
      shape = (*shape[:-3:-1], *shape[:-2])
    table[f'{module}.{_LEAVES[path[-1]]}'] = (path, shape)
  return table


_LEAVES = {'kernel': 'weight', 'scale': 'weight', 'bias': 'bias', 'embedding': 'embedding.weight'}


def _turned(kernel: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
  return kernel.transpose(axes) if kernel.ndim == 4 else kernel.T
