"""Weights of DiT and SiT, by their original names or diffusers', for models.dit and back."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from gdistill import errors
from gdistill.convert import folding
from gdistill.models import dit

_OF = 'DiT or SiT'
_PREFIXES = ('blocks.', 'transformer_blocks.')
# Our layer -> its name in the original code and in diffusers' DiTTransformer2DModel. In the latter
# every block has a copy of the embedders.
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
  'q': ('attn.q', 'attn1.to_q'),  # the original has q, k and v in one layer, attn.qkv
  'k': ('attn.k', 'attn1.to_k'),
  'v': ('attn.v', 'attn1.to_v'),
  'out': ('attn.proj', 'attn1.to_out.0'),
  'mlp0': ('mlp.fc1', 'ff.net.0.proj'),
  'mlp1': ('mlp.fc2', 'ff.net.2'),
}


def params_from(state: Mapping[str, np.ndarray]) -> dict:
  """Flax parameters of dit.DiT from {'blocks.0.attn.qkv.weight': ...} or diffusers' names.

  The bias of k is left out: it adds the same to all scores of a query, which softmax does not see.
  ConfigError names the first array that is missing, not expected, or says something that dit.DiT
  cannot: positions of its own, blocks with embedders of their own.
  """
  state = dict(state)
  original = 'x_embedder.proj.weight' in state
  prefix = _PREFIXES[0 if original else 1]
  depth = len({name.split('.')[1] for name in state if name.startswith(prefix)})
  if original:
    _check_positions(state)
    for i in range(depth):
      for kind in ('weight', 'bias'):
        parts = np.split(folding.taken(state, f'blocks.{i}.attn.qkv.{kind}', _OF), 3)
        state |= {f'blocks.{i}.attn.{part}.{kind}': a for part, a in zip('qkv', parts, strict=True)}
  params: dict[str, Any] = {f'block{i}': {} for i in range(depth)}
  for (where, layer), names in _names(depth, original).items():
    (params[where] if where else params)[layer] = _layer(state, layer, names)
  if state:
    raise errors.ConfigError(f'{min(state)!r} is no array of {_OF}')
  return params


def state_from(
  params: Mapping[str, Any], layout: Literal['original', 'diffusers'], side: int
) -> dict[str, np.ndarray]:
  """The arrays by their names in `layout`; `side` is the number of patches along one of an image.

  The bias of k is zero, and w's projection has no place there: ConfigError.
  """
  if 'w_proj' in params:
    raise errors.ConfigError("'w_proj' has no place in DiT's layout; export a network without w")
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
  """{(block or '', layer): its names, without .weight and .bias}."""
  which = 0 if original else 1
  names = {('', layer): [theirs[which]] for layer, theirs in _ENDS.items()}
  for layer, theirs in _EMBEDDERS.items():
    copies = [f'{_PREFIXES[1]}{i}.norm1.emb.{theirs[1]}' for i in range(depth)]
    names['', layer] = [theirs[0]] if original else copies
  for i in range(depth):
    for layer, theirs in _IN_BLOCK.items():
      names[f'block{i}', layer] = [f'{_PREFIXES[which]}{i}.{theirs[which]}']
  return names


def _layer(state: dict, layer: str, names: list[str]) -> dict[str, np.ndarray]:
  weight = _same(state, [f'{name}.weight' for name in names])
  if layer == 'label':
    return {'embedding': weight}
  kernel = weight.T if weight.ndim == 2 else weight.transpose(2, 3, 1, 0)
  bias = _same(state, [f'{name}.bias' for name in names])
  return {'kernel': kernel} if layer == 'k' else {'kernel': kernel, 'bias': bias}


def _same(state: dict, names: list[str]) -> np.ndarray:
  first, *others = (folding.taken(state, name, _OF) for name in names)
  for name, other in zip(names[1:], others, strict=True):
    if not np.array_equal(first, other):
      raise errors.ConfigError(
        f'{name} is not {names[0]}: a block with embedders of its own is another network'
      )
  return first.astype(np.float32)


def _arrays(layer: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """{'weight': ..., 'bias': ...} as torch has them."""
  layer = {name: np.asarray(a, np.float32) for name, a in layer.items()}
  if 'embedding' in layer:
    return {'weight': layer['embedding']}
  kernel = layer['kernel']
  weight = kernel.T if kernel.ndim == 2 else kernel.transpose(3, 2, 0, 1)
  bias = layer.get('bias', np.zeros(len(weight), np.float32))
  return {'weight': np.ascontiguousarray(weight), 'bias': bias}


def _check_positions(state: dict) -> None:
  found = state.pop('pos_embed', None)
  if found is None:
    return
  side = round(found.shape[1] ** 0.5)
  expected = dit.positions(side, side, found.shape[2])[None]
  if found.shape != expected.shape or np.abs(found - expected).max() > 1e-5:
    raise errors.ConfigError("'pos_embed' holds other positions than DiT's: it is another network")
