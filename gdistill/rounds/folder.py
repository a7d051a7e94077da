"""Reads the folder of a finished round as a network with parameters."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from gdistill import errors
from gdistill.recipe import settings as recipes
from gdistill.rounds import network as networks
from gdistill.rounds import plan as plans
from gdistill.workdir import finished as finished_rounds
from gdistill.workdir import storage


@dataclasses.dataclass(frozen=True)
class Folder:
  """A finished round: card.json, the network that card.json describes, and the parameters."""

  path: storage.epath.Path
  card: dict
  settings: recipes.Model
  noise: recipes.Noise
  net: networks.Network
  params: Any
  null_params: Any = None  # parameters of the unconditional network, if there is one

  @property
  def name(self) -> str:
    return self.path.name

  @property
  def takes_w(self) -> bool:
    return self.card['takes_w']

  @property
  def guided(self) -> bool:
    """Tells whether sampling at strength w needs guidance, which takes two network calls a step."""
    return self.card['guided']

  @property
  def num_steps(self) -> int:
    return self.card['num_steps']


def settings_of(card: Mapping[str, Any]) -> tuple[recipes.Model, recipes.Noise]:
  """Returns the settings (model, noise) in card.json; KeyError or TypeError if a key is missing."""
  lists = {k: tuple(card['model'][k]) for k in ('multipliers', 'attention_resolutions')}
  return recipes.Model(**{**card['model'], **lists}), recipes.Noise(**card['noise'])


def null_of(card: Mapping[str, Any]) -> str:
  """Returns where the unconditional prediction comes from: 'trained', 'network' or 'none'.

  'trained' means the network itself, trained with label dropout; 'network' means a second network.
  """
  return card.get('null') or (
    'trained' if card['p_uncond'] else 'none'
  )  # only imported rounds have 'null'


def read_folder(path: Any) -> Folder:
  """Reads a finished round; CheckpointError or ConfigError if `path` holds no finished round."""
  folder = storage.path(path)
  card = finished_rounds.read_card(folder)
  try:
    settings, noise_settings = settings_of(card)
    net = networks.build(settings, card['takes_w'], noise_settings=noise_settings)
  except (KeyError, TypeError) as e:
    raise errors.CheckpointError(
      f'{folder}/card.json has a missing or unknown key: {e}; use the version of gdistill that '
      'wrote this card.json'
    ) from e
  params = finished_rounds.read_params(folder, networks.initial_shapes(net, settings))
  null_params = None
  if card.get('null') == 'network':
    null_params = finished_rounds.read_params(
      folder / 'null', networks.initial_shapes(net, settings)
    )
  return Folder(folder, card, settings, noise_settings, net, params, null_params)


def guided_teacher(
  workdir: storage.epath.Path, plan: Sequence[plans.Round], initial: str
) -> storage.epath.Path:
  """Returns the folder of the guided teacher from which the students of a run descend.

  The teacher is the plan's first round, or an ancestor of the round in the folder `initial`. Raises
  ConfigError if an ancestor's folder is missing.
  """
  if plan and plan[0].stage == 'teacher':
    return workdir / plan[0].name
  folder = storage.path(initial)
  card = finished_rounds.read_card(folder)
  while card['stage'] != 'teacher':
    before = card['teacher']  # a name: a round of the same run; a path: a round of another run
    folder = storage.path(before) if '/' in before else folder.parent / before
    if not finished_rounds.is_finished(folder):
      raise errors.ConfigError(
        f'{initial=} descends from {folder}, which is missing; copy that folder too: the report '
        'compares students with the guided teacher'
      )
    card = finished_rounds.read_card(folder)
  return folder
