"""Converts published weights of CLIP's text and image towers to Flax parameters of models.clip."""

from collections.abc import Mapping

import numpy as np

from gdistill import errors

_TOWERS = {
  'text': ('text_model.', 'text_projection.'),
  'image': ('vision_model.', 'visual_projection.'),
}
_TABLES = ('token_embedding', 'position_embedding')


def params_from(state: Mapping[str, np.ndarray], tower: str) -> dict:
  """Returns Flax parameters of one tower from {'text_model.encoder.layers.0.mlp.fc1.bias': ...}.

  `tower` is 'text' or 'image'. Only arrays of the tower `tower` are returned; the logit scale and
  stored position ids are left out. Raises ConfigError if `state` has no array of the tower `tower`.
  """
  prefixes, params = _TOWERS[tower], {}
  for name, value in state.items():
    if not name.startswith(prefixes) or name.endswith('position_ids'):
      continue
    name = name.removeprefix(prefixes[0]).removeprefix('embeddings.').removeprefix('encoder.')
    value = np.asarray(value, np.float32)
    *module, kind = name.split('.')
    module = '_'.join(module)
    if not module:  # the array class_embedding belongs to no module
      params[kind] = value
    elif module in _TABLES:
      params[module] = value
    elif kind == 'bias':
      params.setdefault(module, {})['bias'] = value
    elif value.ndim == 4:
      params.setdefault(module, {})['kernel'] = value.transpose(2, 3, 1, 0)
    elif value.ndim == 2:
      params.setdefault(module, {})['kernel'] = value.T
    else:
      params.setdefault(module, {})['scale'] = value
  if not params:
    raise errors.ConfigError(
      f"no array is named {prefixes[0]}*, so these are not weights of CLIP's {tower} tower; use a "
      'file with the weights of that tower'
    )
  return params


def text_params_from(state: Mapping[str, np.ndarray]) -> dict:
  """Returns Flax parameters of a text encoder: CLIP's text tower without projection layer.

  The prefix 'text_model.' of array names is optional. Arrays with unknown names are kept under the
  names they have in `state`, so that the caller can report these names.
  """
  prefix = 'text_model.'  # some versions of transformers write no such prefix
  if not any(name.startswith(prefix) for name in state):
    state = {prefix + name: value for name, value in state.items()}
  # The projection layer is left out, because it comes after the hidden states of the text tower.
  aside = ('text_projection.weight', f'{prefix}text_projection.weight')
  odd = {n: np.asarray(v) for n, v in state.items() if not n.startswith(prefix) and n not in aside}
  known = {n: v for n, v in state.items() if n not in aside and n not in odd}
  return {**params_from(known, 'text'), **odd}
