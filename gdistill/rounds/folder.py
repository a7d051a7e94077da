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
  null_params: Any = None  # parameters of a second, unconditional network, or None

  @property
  def name(self) -> str:
    return self.path.name

  @property
  def takes_w(self) -> bool:
    return self.card['takes_w']

  @property
  def guided(self) -> bool:
    """Returns whether sampling uses guidance, which calls networks twice in each step."""
    return self.card['guided']

  @property
  def num_steps(self) -> int:
    return self.card['num_steps']


def settings_of(card: Mapping[str, Any]) -> tuple[recipes.Model, recipes.Noise]:
  """Returns the settings (model, noise) in card.json.

  Raises KeyError or TypeError if a key of card.json is missing or unknown.
  """
  lists = {k: tuple(card['model'][k]) for k in ('multipliers', 'attention_resolutions')}
  return recipes.Model(**{**card['model'], **lists}), recipes.Noise(**card['noise'])


def null_of(card: Mapping[str, Any]) -> str:
  """Returns which network predicts without condition: 'trained', 'network' or 'none'.

  'trained' means the conditional network, if trained with label dropout; 'network' means a second,
  unconditional network; 'none' means that no network predicts without condition.
  """
  return card.get('null') or (
    'trained' if card['p_uncond'] else 'none'
  )  # only imported rounds have the key 'null'


def read_folder(path: Any) -> Folder:
  """Reads the finished round at `path`; raises CheckpointError or ConfigError if there is none."""
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
  """Returns the folder of the guided teacher that the students of a run were distilled from.

  The teacher is the plan's first round, or else a round that the round in the folder `initial`
  descends from. Raises ConfigError if the folder of a round between `initial` and the teacher is
  missing.
  """
  if plan and plan[0].stage == 'teacher':
    return workdir / plan[0].name
  folder = storage.path(initial)
  card = finished_rounds.read_card(folder)
  while card['stage'] != 'teacher':
    before = card['teacher']  # a round's name in the same run, or the path of a round's folder
    folder = storage.path(before) if '/' in before else folder.parent / before
    if not finished_rounds.is_finished(folder):
      raise errors.ConfigError(
        f'{initial=} descends from {folder}, which is missing; copy that folder too: the report '
        'compares students with the guided teacher'
      )
    card = finished_rounds.read_card(folder)
  return folder
