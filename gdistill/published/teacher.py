"""Defines Teacher: a published network in memory, with its settings in gdistill's form."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from gdistill.convert import autoencoder as autoencoders
from gdistill.convert import text as texts
from gdistill.recipe import settings as recipes


@dataclasses.dataclass(frozen=True, eq=False)
class Teacher:
  """A published network: settings, noise schedule, parameters, autoencoder and text encoder.

  `null` says how the network can be guided:
  - 'trained': by the null condition that the network was trained with
  - 'network': by a second, unconditional network with the parameters `null_params`
  - 'none': the network cannot be guided
  """

  kind: str  # family of the network, such as 'dit'; one of kinds.KINDS
  settings: recipes.Model
  noise: recipes.Noise
  params: dict
  null: Literal['trained', 'network', 'none']
  about: Mapping[str, Any]  # facts on the network, such as digest and licence, for card.json
  null_params: dict | None = None
  autoencoder: autoencoders.Autoencoder | None = None
  text: texts.TextEncoder | None = None
