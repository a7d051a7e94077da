"""The published weights of CLIP's towers, by their torch names, for models.clip."""

from collections.abc import Mapping

import numpy as np

from gdistill import errors

_TOWERS = {
  'text': ('text_model.', 'text_projection.'),
  'image': ('vision_model.', 'visual_projection.'),
}
_TABLES = ('token_embedding', 'position_embedding')


def params_from(state: Mapping[str, np.ndarray], tower: str) -> dict:
  """Flax parameters of 'text' or 'image' from {'text_model.encoder.layers.0.mlp.fc1.weight': ...}.

  Arrays of the other tower, the logit scale and stored position ids are left aside. ConfigError
  where there is nothing of this tower.
  """
  prefixes, params = _TOWERS[tower], {}
  for name, value in state.items():
    if not name.startswith(prefixes) or name.endswith('position_ids'):
      continue
    name = name.removeprefix(prefixes[0]).removeprefix('embeddings.').removeprefix('encoder.')
    value = np.asarray(value, np.float32)
    *module, kind = name.split('.')
    module = '_'.join(module)
    if not module:  # class_embedding
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
    raise errors.ConfigError(f'there is no array {prefixes[0]}*: these are not weights of CLIP')
  return params
