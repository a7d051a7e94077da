"""A finished round's folder, read as a network with its parameters."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from gdistill import errors
from gdistill.recipe import settings as recipes
from gdistill.rounds import network as networks
from gdistill.workdir import finished as finished_rounds
from gdistill.workdir import storage


@dataclasses.dataclass(frozen=True)
class Folder:
  """What a finished round's card says, checked, and its parameters."""

  path: storage.epath.Path
  card: dict
  settings: recipes.Model
  noise: recipes.Noise
  net: networks.Network
  params: Any
  null_params: Any = None  # of a second network, which this one is guided by

  @property
  def name(self) -> str:
    return self.path.name

  @property
  def takes_w(self) -> bool:
    return self.card['takes_w']

  @property
  def guided(self) -> bool:
    """Whether sampling at w needs guidance, two network calls a step."""
    return self.card['guided']

  @property
  def num_steps(self) -> int:
    return self.card['num_steps']


def settings_of(card: Mapping[str, Any]) -> tuple[recipes.Model, recipes.Noise]:
  """(network, noise) of a card; KeyError or TypeError where it does not say them."""
  lists = {k: tuple(card['model'][k]) for k in ('multipliers', 'attention_resolutions')}
  return recipes.Model(**{**card['model'], **lists}), recipes.Noise(**card['noise'])


def null_of(card: Mapping[str, Any]) -> str:
  """Where a network's null condition comes from: 'trained', 'network' (a second one), or 'none'."""
  return card.get('null') or ('trained' if card['p_uncond'] else 'none')  # only imports say it


def read_folder(path: Any) -> Folder:
  """CheckpointError or ConfigError where there is no finished round to read."""
  folder = storage.path(path)
  card = finished_rounds.read_card(folder)
  try:
    settings, noise_settings = settings_of(card)
    net = networks.build(settings, card['takes_w'], noise_settings=noise_settings)
  except (KeyError, TypeError) as e:
    raise errors.CheckpointError(f'{folder}/card.json lacks or misnames {e}') from e
  params = finished_rounds.read_params(folder, networks.initial_shapes(net, settings))
  null_params = None
  if card.get('null') == 'network':
    null_params = finished_rounds.read_params(
      folder / 'null', networks.initial_shapes(net, settings)
    )
  return Folder(folder, card, settings, noise_settings, net, params, null_params)
