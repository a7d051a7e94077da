"""Converts weights of DiT and SiT, in the authors' or diffusers' names, to models.dit and back."""

from collections.abc import Collection, Mapping
from typing import Any, Literal

import jax
import numpy as np
from jax import numpy as jnp

from gdistill import errors
from gdistill.convert import folding
from gdistill.models import dit

# diffusers' class for DiT, and the name of that class in earlier versions of diffusers.
_CLASSES = ('DiTTransformer2DModel', 'Transformer2DModel')
_PREFIXES = ('blocks.', 'transformer_blocks.')
# Layer of models.dit -> (name in the authors' code, name in diffusers' DiTTransformer2DModel).
# diffusers stores a copy of the time and label embedders in every block.
_ENDS = {
  'patch': ('x_embedder.proj', 'pos_embed.proj'),
  'final_modulation': ('final_layer.adaLN_modulation.1', 'proj_out_1'),
  'final': ('final_layer.linear', 'proj_out_2'),
}
_EMBEDDERS = {
  'time0': ('t_embedder.mlp.0', 'timestep_embedder.linear_1'),
  'time1': ('t_embedder.mlp.2', 'timestep_embedder.linear_2'),
  'label': ('y_embedder.embedding_table', 'class_embedder.embedding_table'),
}
_IN_BLOCK = {
  'modulation': ('adaLN_modulation.1', 'norm1.linear'),
  'q': ('attn.q', 'attn1.to_q'),  # the authors' code has one layer for q, k and v: attn.qkv
  'k': ('attn.k', 'attn1.to_k'),
  'v': ('attn.v', 'attn1.to_v'),
  'out': ('attn.proj', 'attn1.to_out.0'),
  'mlp0': ('mlp.fc1', 'ff.net.0.proj'),
  'mlp1': ('mlp.fc2', 'ff.net.2'),
}

# Layer -> axes of its weight, for the three layers whose shapes give the sizes of the network.
# '4 n' is any multiple of 4.
_SIZED_BY = {
  'patch': '(4 n, channels, patch, patch)', 'label': '(classes + 1, 4 n)',
  'final': '(patch * patch * channels, 4 n)',
}  # fmt: skip
# Fields of diffusers' config.json that must have these values: models.dit supports no other values.
_FIXED = dict(
  norm_type='ada_norm_zero', activation_fn='gelu-approximate', norm_elementwise_affine=False,
  attention_bias=True, only_cross_attention=False, double_self_attention=False,
  use_linear_projection=False, attention_type='default', interpolation_scale=1,
)  # fmt: skip
# Fields of diffusers' config.json that `refuse_others` need not check: other functions read them,
# or they do not change the network's output.
_ASIDE = (
  'sample_size', 'num_attention_heads', 'attention_head_dim', 'norm_eps', 'dropout',
  'norm_num_groups', 'upcast_attention',
)  # fmt: skip


def params_from(state: Mapping[str, np.ndarray]) -> dict:
  """Returns Flax parameters of dit.DiT from {'blocks.0.attn.qkv.weight': ...} or diffusers' names.

  The bias of k is left out: the bias adds the same number to all scores of a query, and softmax
  cancels that number. Raises ConfigError with a list of the arrays that are missing from `state`,
  that a DiT does not have, or whose shape does not fit a DiT. Raises ConfigError if the position
  embeddings are not DiT's sines and cosines, or if two blocks have different time or label
  embedders.
  """
  state, original = dict(state), is_original(state)
  places = state.pop('pos_embed', None) if original else None
  prefix = _PREFIXES[0 if original else 1]
  depth = len({name.split('.')[1] for name in state if name.startswith(prefix)}) or 1
  shapes = {name: np.shape(a) for name, a in state.items()}
  folding.check(shapes, _state_shapes(shapes, depth, original))
  if original:
    for i in range(depth):
      for kind in ('weight', 'bias'):
        parts = np.split(state[f'blocks.{i}.attn.qkv.{kind}'], 3)
        state |= {f'blocks.{i}.attn.{part}.{kind}': a for part, a in zip('qkv', parts, strict=True)}
  params: dict[str, Any] = {f'block{i}': {} for i in range(depth)}
  for (where, layer), names in _names(depth, original).items():
    (params[where] if where else params)[layer] = _layer(state, layer, names)
  if places is not None:
    _check_positions(places, len(params['patch']['bias']))
  return params


def is_original(state: Collection[str]) -> bool:
  """Returns True if the array names in `state` are the authors', False if they are diffusers'."""
  return not any(name.startswith(_PREFIXES[1]) for name in state)


def heads_from(config: Mapping[str, Any], params: Mapping[str, Any]) -> int:
  """Returns the number of attention heads in `config`, diffusers' config.json of a DiT.

  Raises ConfigError if the sizes in `config` differ from those of `params`, or if `config` asks for
  a feature that models.dit does not have.
  """
  if config.get('_class_name', _CLASSES[0]) not in _CLASSES:
    folding.refuse('_class_name', config['_class_name'], f'one of {", ".join(_CLASSES)}')
  patch, _, channels, width = params['patch']['kernel'].shape
  sizes = dict(
    patch_size=patch, in_channels=channels, num_layers=sum(n.startswith('block') for n in params),
    out_channels=params['final']['bias'].shape[0] // patch**2,
    num_embeds_ada_norm=len(params['label']['embedding']) - 1,
  )  # fmt: skip
  given = {field: value for field, value in config.items() if value is not None}
  folding.refuse_others(given, {**_FIXED, **sizes}, _ASIDE)
  if given.get('norm_eps', 1e-5) not in (1e-5, 1e-6):
    folding.refuse('norm_eps', given['norm_eps'], '1e-06, or 1e-05 as in the published folders')
  heads, dim = given.get('num_attention_heads', 16), given.get('attention_head_dim', 72)
  if not (folding.is_count(heads) and folding.is_count(dim) and heads * dim == width):
    folding.refuse('num_attention_heads', heads, f'{width} over attention_head_dim={dim!r}')
  return heads


def state_from(
  params: Mapping[str, Any], layout: Literal['original', 'diffusers'], side: int
) -> dict[str, np.ndarray]:
  """Returns {name: array} of a DiT in torch's shapes, with the array names of `layout`.

  `side` is the number of patches along a side of the input. The bias of k is written as zero,
  because `params` has no bias of k. Raises ConfigError for a network that takes w, because the
  published DiT has no layer for w.
  """
  if 'w_proj' in params:
    raise errors.ConfigError(
      "'w_proj', the layer for the guidance weight w, has no place in DiT's layout; export a "
      'network that does not take w'
    )
  original, state = layout == 'original', {}
  depth = sum(name.startswith('block') for name in params)
  for (where, layer), names in _names(depth, original).items():
    arrays = _arrays((params[where] if where else params)[layer])
    state |= {f'{name}.{kind}': a for name in names for kind, a in arrays.items()}
  if original:
    for i in range(depth):
      for kind in ('weight', 'bias'):
        parts = [state.pop(f'blocks.{i}.attn.{part}.{kind}') for part in 'qkv']
        state[f'blocks.{i}.attn.qkv.{kind}'] = np.concatenate(parts)
    width = params['patch']['bias'].shape[0]
    state['pos_embed'] = dit.positions(side, side, width)[None]
  return state


def _names(depth: int, original: bool) -> dict[tuple[str, str], list[str]]:
  """Returns {(block, layer): published names of the layer, without .weight and .bias}.

  The block is '' for a layer outside all blocks. The published names are those of the authors' code
  if `original` is True, otherwise those of diffusers.
  """
  which = 0 if original else 1
  names = {('', layer): [theirs[which]] for layer, theirs in _ENDS.items()}
  for layer, theirs in _EMBEDDERS.items():
    copies = [f'{_PREFIXES[1]}{i}.norm1.emb.{theirs[1]}' for i in range(depth)]
    names['', layer] = [theirs[0]] if original else copies
  for i in range(depth):
    for layer, theirs in _IN_BLOCK.items():
      names[f'block{i}', layer] = [f'{_PREFIXES[which]}{i}.{theirs[which]}']
  return names


def _state_shapes(
  shapes: Mapping[str, tuple[int, ...]], depth: int, original: bool
) -> dict[str, Any]:
  """Returns {name: expected shape} of all arrays of the DiT that `shapes` describes.

  The sizes of the DiT are read from three arrays in `shapes`, those of the layers in _SIZED_BY. If
  an array of a layer in _SIZED_BY is missing or malformed, the expected shape of that array is the
  text in _SIZED_BY; every other array is expected in the shape found, so that an error does not
  name arrays that may be right.
  """
  names = _names(depth, original)
  sized_by = {f'{names["", layer][0]}.weight': axes for layer, axes in _SIZED_BY.items()}
  odd = {n: axes for n, axes in sized_by.items() if not _has_axes(shapes.get(n, ()), axes)}
  if not odd:
    (width, channels, side, _), (rows, _), (out, _) = (shapes[name] for name in sized_by)
    learned_sigma = out == 2 * channels * side**2
    net = dit.DiT(width, depth, 1, side, rows - 1, learned_sigma=learned_sigma)
    z, one, cond = jnp.zeros((1, side, side, channels)), jnp.ones(1), {'label': jnp.zeros(1, int)}
    params = jax.eval_shape(lambda: net.init(jax.random.key(0), z, one, cond, one))['params']
  wanted: dict[str, Any] = {}
  for (where, layer), copies in names.items():
    stored = dict.fromkeys(('weight',) if layer == 'label' else ('weight', 'bias'), ())
    if not odd:
      stored |= folding.stored((params[where] if where else params)[layer])
    if layer == 'k':
      stored['bias'] = stored['weight'][:1]
    wanted |= {f'{name}.{kind}': shape for name in copies for kind, shape in stored.items()}
  if original:
    for i in range(depth):
      for kind in ('weight', 'bias'):
        (out, *rest), *_ = [wanted.pop(f'blocks.{i}.attn.{part}.{kind}') or (0,) for part in 'qkv']
        wanted[f'blocks.{i}.attn.qkv.{kind}'] = (3 * out, *rest)
  return {n: odd.get(n, shapes.get(n, '')) for n in wanted} if odd else wanted


def _has_axes(shape: tuple[int, ...], axes: str) -> bool:
  """Returns whether `shape` has the axes in `axes`, none of size 0, '4 n' a multiple of 4."""
  sizes = dict(zip(axes.strip('()').split(', '), shape, strict=False))
  return len(shape) == len(axes.split(', ')) and all(shape) and sizes['4 n'] % 4 == 0


def _layer(state: Mapping[str, np.ndarray], layer: str, names: list[str]) -> dict[str, np.ndarray]:
  weight = _same(state, [f'{name}.weight' for name in names])
  if layer == 'label':
    return {'embedding': weight}
  kernel = weight.T if weight.ndim == 2 else weight.transpose(2, 3, 1, 0)
  bias = _same(state, [f'{name}.bias' for name in names])
  return {'kernel': kernel} if layer == 'k' else {'kernel': kernel, 'bias': bias}


def _same(state: Mapping[str, np.ndarray], names: list[str]) -> np.ndarray:
  for name in names[1:]:
    if not np.array_equal(state[names[0]], state[name]):
      raise errors.ConfigError(
        f'{name} differs from {names[0]}: only a DiT with the same time and label embedders in all '
        'blocks is supported; use the weights of such a DiT'
      )
  return np.asarray(state[names[0]], np.float32)


def _arrays(layer: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Returns {'weight': ..., 'bias': ...} of a Flax layer in torch's shapes."""
  layer = {name: np.asarray(a, np.float32) for name, a in layer.items()}
  if 'embedding' in layer:
    return {'weight': layer['embedding']}
  kernel = layer['kernel']
  weight = kernel.T if kernel.ndim == 2 else kernel.transpose(3, 2, 0, 1)
  bias = layer.get('bias', np.zeros(len(weight), np.float32))
  return {'weight': np.ascontiguousarray(weight), 'bias': bias}


def _check_positions(found: np.ndarray, width: int) -> None:
  side = round(found.shape[1] ** 0.5) if found.ndim == 3 else 0
  expected = dit.positions(side, side, width)[None]
  if found.shape != expected.shape or np.abs(found - expected).max() > _precision(found):
    raise errors.ConfigError(
      "'pos_embed' holds other positions than DiT's: these are the weights of another network; "
      'use the weights of a DiT or SiT'
    )


def _precision(a: np.ndarray) -> float:
  """Returns the machine epsilon of bfloat16 or float16 if `a` is exact in that type, else 1e-5."""
  for kind in (jnp.bfloat16, jnp.float16):
    if np.array_equal(a, a.astype(kind).astype(a.dtype)):
      return float(jnp.finfo(kind).eps)
  return 1e-5
