"""Reads the settings in JSON files of the library transformers; builds a text encoder's network."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from flax import linen as nn

from gdistill import errors
from gdistill.models import bert as models_bert
from gdistill.models import clip as models_clip


def read(file: pathlib.Path) -> dict[str, Any]:
  """Returns the JSON object in `file` as a dict; raises DataError if `file` holds no object."""
  try:
    found = json.loads(file.read_bytes())
  except (OSError, ValueError, RecursionError) as e:
    raise errors.DataError(
      f'{file} cannot be read ({errors.brief(e)}); download the file again'
    ) from e
  if not isinstance(found, dict):
    raise errors.DataError(
      f'{file} must hold a JSON object and holds {str(found)[:40]}; download the file again'
    )
  return found


def number(folder: pathlib.Path, config: Mapping[str, Any], name: str, default: Any) -> float:
  """Returns the field `name` of `config`, or `default` if the field is absent.

  Raises DataError, with `folder` in the error line, if the field is not a positive number.
  """
  value = config.get(name, default)
  if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
    raise errors.DataError(
      f'{folder}: {name}={value!r} in its settings must be a positive number; download the .json '
      'files of this folder again'
    )
  return value


def network(folder: pathlib.Path, kind: str, config: Mapping[str, Any]) -> nn.Module:
  """Returns the network described by <folder>/config.json: a module of models.clip or models.bert.

  `kind` is 'clip' or 'bert'. Raises ConfigError if `config` asks for a feature that models.clip or
  models.bert does not have. Raises DataError if a size in `config` is not positive, or if the width
  is no multiple of the number of attention heads.
  """

  def size(name, default=None):
    return int(number(folder, config, name, default))

  activation = config.get('hidden_act', {'clip': 'quick_gelu', 'bert': 'gelu'}[kind])
  if activation not in models_clip.ACTIVATIONS:
    raise errors.ConfigError(
      f'{folder}/config.json: hidden_act={activation!r} must be one of '
      f'{", ".join(models_clip.ACTIVATIONS)}; use a text encoder with such an activation'
    )
  if config.get('position_embedding_type', 'absolute') != 'absolute' or config.get('is_decoder'):
    raise errors.ConfigError(
      f'{folder}/config.json: position_embedding_type={config.get("position_embedding_type")!r}, '
      f'is_decoder={config.get("is_decoder", False)}: only encoders with absolute position '
      'embeddings are supported; use another text encoder'
    )
  of = [
    size(name)
    for name in ('hidden_size', 'num_hidden_layers', 'num_attention_heads', 'intermediate_size')
  ]
  if of[0] % of[2]:
    raise errors.DataError(
      f'{folder}/config.json: hidden_size={of[0]} must be a multiple of num_attention_heads='
      f'{of[2]}; download config.json again'
    )
  vocabulary, length = size('vocab_size'), size('max_position_embeddings')
  epsilon = number(folder, config, 'layer_norm_eps', {'clip': 1e-5, 'bert': 1e-12}[kind])
  if kind == 'clip':
    tower = models_clip.Tower(*of, activation, epsilon=epsilon)
    return models_clip.Text(tower, models_clip.Words(vocabulary, length))
  sentences = size('type_vocab_size', 2)
  return models_bert.Bert(
    models_bert.Sizes(*of, vocabulary, length, sentences, activation, epsilon)
  )
