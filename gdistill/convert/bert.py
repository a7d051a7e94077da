"""The published weights of BERT, under their torch names, for models.bert."""

from collections.abc import Mapping

import numpy as np

# Parts of published BERTs that the hidden states do not depend on.
_ASIDE = ('pooler.', 'cls.')


def params_from(state: Mapping[str, np.ndarray]) -> dict:
  """Returns Flax parameters from {'encoder.layer.0.output.dense.weight': [O, I], ...}.

  The prefix 'bert.' is optional. Heads (pooler, cls) and stored position ids are left out. Arrays
  with unknown names are kept under a name of their own, so that the caller can report them.
  """
  params = {}
  for name, value in state.items():
    name = name.removeprefix('bert.')
    if name.startswith(_ASIDE) or name.endswith('position_ids'):
      continue
    *module, kind = name.removeprefix('embeddings.').removeprefix('encoder.').split('.')
    # The first checkpoints, converted from TensorFlow, call a norm's parameters gamma and beta.
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
