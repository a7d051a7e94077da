"""Teacher: a published network in this package's terms, which every family's `read` returns."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from gdistill.convert import autoencoder as autoencoders
from gdistill.convert import text as texts
from gdistill.recipe import settings as recipes


@dataclasses.dataclass(frozen=True, eq=False)
class Teacher:
  """A published network: its settings, noise schedule, parameters, and its frozen networks.

  `null` says how the network can be guided: 'trained' by its own null condition, 'network' by a
  second, unconditional network with the parameters `null_params`, 'none' not at all.
  """

  kind: str  # one of teachers.KINDS
  settings: recipes.Model
  noise: recipes.Noise
  params: dict
  null: Literal['trained', 'network', 'none']
  about: Mapping[str, Any]  # for the card: digest, licence, epsilon, head order, null rule
  null_params: dict | None = None
  autoencoder: autoencoders.Autoencoder | None = None
  text: texts.TextEncoder | None = None
