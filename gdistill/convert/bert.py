"""Converts published weights of BERT, in torch's names, to Flax parameters of models.bert."""

from collections.abc import Mapping

import numpy as np

# Prefixes of published array names: the hidden states of BERT do not depend on arrays with these
# prefixes.
_ASIDE = ('pooler.', 'cls.')


def params_from(state: Mapping[str, np.ndarray]) -> dict:
  """Returns Flax parameters of BERT from {'encoder.layer.0.output.dense.weight': [O, I], ...}.

  The prefix 'bert.' of array names is optional. The output heads (pooler, cls) and stored position
  ids are left out. Arrays with unknown names are kept, so that the caller can report their names.
  """
  params = {}
  for name, value in state.items():
    name = name.removeprefix('bert.')
    if name.startswith(_ASIDE) or name.endswith('position_ids'):
      continue
    *module, kind = name.removeprefix('embeddings.').removeprefix('encoder.').split('.')
    # Old checkpoints of BERT, converted from TensorFlow, call a norm's arrays gamma and beta.
    kind = {'gamma': 'weight', 'beta': 'bias'}.get(kind, kind)
    module, value = '_'.join(module), np.asarray(value, np.float32)
    if kind == 'weight' and module.endswith('_embeddings'):
      params[module] = value
    elif kind == 'weight':
      linear = value.ndim == 2
      params.setdefault(module, {})['kernel' if linear else 'scale'] = value.T if linear else value
    else:
      params.setdefault(module, {})[kind] = value
  return params
