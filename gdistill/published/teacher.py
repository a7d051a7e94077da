"""Defines Teacher: a published network with gdistill's settings, ready to be imported."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from gdistill.convert import autoencoder as autoencoders
from gdistill.convert import text as texts
from gdistill.recipe import settings as recipes


@dataclasses.dataclass(frozen=True, eq=False)
class Teacher:
  """A published network: settings, noise schedule, parameters and frozen networks.

  `null` says how the network can be guided:

  - 'trained': by the null condition that the network was trained with
  - 'network': by a second, unconditional network with the parameters `null_params`
  - 'none': the network cannot be guided
  """

  kind: str  # family of the network, one of teachers.KINDS
  settings: recipes.Model
  noise: recipes.Noise
  params: dict
  null: Literal['trained', 'network', 'none']
  about: Mapping[str, Any]  # facts for card.json, such as digest and licence
  null_params: dict | None = None
  autoencoder: autoencoders.Autoencoder | None = None
  text: texts.TextEncoder | None = None
