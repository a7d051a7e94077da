"""Reads OpenAI's ADM for ImageNet, a teacher guided by a second, unconditional network."""

import pathlib
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from gdistill import errors
from gdistill.convert import adm
from gdistill.published import model_settings
from gdistill.published import schedulers
from gdistill.published import source_files
from gdistill.published import teacher
from gdistill.recipe import settings as recipes


class Release(NamedTuple):
  """Settings of one ADM network that OpenAI released; the weights file does not hold settings."""

  fields: Mapping[str, Any]  # keys of the section `model` of a recipe, and the values
  image_size: int
  order: Literal['new', 'legacy']  # order of the weights of q, k and v; see convert/adm.py
  noise: recipes.Noise


RELEASES = {
  'adm64': Release(adm.ADM_64, 64, 'new', recipes.Noise('squared_cosine')),
  'adm256': Release(adm.ADM_256, 256, 'legacy', schedulers.DDPM_NOISE),
}
_HEAD_ORDERS = {'new': 'q, k, v in thirds', 'legacy': 'q, k, v of each head in turn'}


def read(
  path: pathlib.Path, kind: str, *, null: str, autoencoder: str, text: str
) -> teacher.Teacher:
  """Returns the class-conditional network in `path` with the unconditional network in `null`.

  Guidance combines the two networks. If the file `null` is '', the teacher cannot be guided.
  `autoencoder` and `text` are not used, because ADM works on pixels and takes no text.
  """
  release = RELEASES[kind]
  settings = recipes.Model(
    image_size=release.image_size, image_channels=3, groups=32, w_features=256, w_scale=1000.0,
    dtype='float32', predict='eps', time='index', **{'dropout': 0.0, **release.fields},
  )  # fmt: skip
  params, digest = _read_network(path, release, settings, has_labels=True)
  about = {
    'digest': digest,
    'epsilon': settings.epsilon,
    'head_order': _HEAD_ORDERS[release.order],
    'null_rule': 'none: guidance needs a second, unconditional network',
  }
  if not null:
    return teacher.Teacher(kind, settings, release.noise, params, 'none', about)
  null_params, null_digest = _read_network(pathlib.Path(null), release, settings, has_labels=False)
  about |= {'null_rule': 'a second, unconditional network', 'null_digest': null_digest}
  return teacher.Teacher(
    kind, settings, release.noise, params, 'network', about, null_params=null_params
  )


def _read_network(
  path: pathlib.Path, release: Release, settings: recipes.Model, has_labels: bool
) -> tuple[dict, str]:
  """Returns (parameters, sha256 digest of the weights) of the ADM network at `path`.

  Raises ConfigError if `has_labels` is True and the network at `path` is unconditional, or if
  `has_labels` is False and the network is class-conditional.
  """
  file = source_files.weights_file(path)
  state = source_files.read_weights(file)
  first = np.shape(state.get('input_blocks.0.0.weight', ()))
  if first[1:2] == (6,):
    raise errors.ConfigError(
      f"{file} is ADM's upsampler, which takes a small picture beside the noise and which gdistill "
      'cannot import yet; give the network that draws without a small picture'
    )
  with source_files.errors_begin_with(file):
    net = model_settings.build(settings, release.noise)
    params = adm.params_from(state, net, release.image_size, release.order)
  if has_labels and adm.LABELS not in state:
    raise errors.ConfigError(
      f'{file} is the unconditional network, because the file has no {adm.LABELS}; give '
      'the class-conditional network as --source, and the unconditional network as --null'
    )
  if not has_labels and adm.LABELS in state:
    raise errors.ConfigError(
      f'{file} is a class-conditional network, because the file has {adm.LABELS}; give '
      'the file of the unconditional network as --null'
    )
  return params, source_files.digest(state)
