"""OpenAI's ADM, guided by a second, unconditional network."""

import pathlib
from typing import Any

from gdistill import errors
from gdistill.convert import adm
from gdistill.published import common
from gdistill.recipe import settings as recipes

# (fields of the network, side of its images, how q, k and v lie in a layer, noise)
_ADM = {
  'adm64': (adm.ADM_64, 64, 'new', recipes.Noise('squared_cosine')),
  'adm256': (adm.ADM_256, 256, 'legacy', common.DDPM_NOISE),
}


def read(path: pathlib.Path, kind: str, null: str, autoencoder: str, text: str) -> Any:
  """ADM on ImageNet; `null` is the file of its unconditional network."""
  fields, size, order, noise = _ADM[kind]
  settings = recipes.Model(
    image_size=size, image_channels=3, groups=32, w_features=256, w_scale=1000.0, dtype='float32',
    predict='eps', time='index', **{'dropout': 0.0, **fields},
  )  # fmt: skip

  def network_of(file, is_null):
    state = common.read_state(file)
    with common.naming(file):
      params = adm.params_from(state, common.check_network(settings, noise), size, order)
    if (adm.LABELS in state) == is_null:
      raise errors.ConfigError(
        f'{file} is {"no" if is_null else "the"} unconditional network, for it has '
        f'{"" if is_null else "no "}{adm.LABELS}; --source is the class-conditional one and --null '
        'the other'
      )
    return params, common.digest(state)

  params, of_params = network_of(common.one_file(path), False)
  about = {
    'digest': of_params, 'epsilon': settings.epsilon,
    'head_order': 'q, k, v in thirds' if order == 'new' else 'q, k, v of each head in turn',
    'null_rule': 'none: it needs another, unconditional network',
  }  # fmt: skip
  if not null:
    return common.Teacher(kind, settings, noise, params, 'none', None, None, None, about)
  null_params, of_null = network_of(common.one_file(pathlib.Path(null)), True)
  about |= {'null_rule': 'another network', 'null_digest': of_null}
  return common.Teacher(kind, settings, noise, params, 'network', null_params, None, None, about)
