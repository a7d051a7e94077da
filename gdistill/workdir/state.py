"""The state of training: step, parameters, EMA, optimiser state and skipped updates."""

from typing import Any

import flax.struct
import jax
import optax
from jax import numpy as jnp


@flax.struct.dataclass
class TrainState:
  """The state of training that the train step takes and returns."""

  step: jax.Array  # number of updates done in this round, including skipped updates
  params: Any
  ema: Any  # EMA of the parameters; None if the stage has no EMA
  opt: optax.OptState
  skipped: jax.Array  # number of updates skipped because loss or gradient was not finite
  skipped_in_a_row: jax.Array


def create(params: Any, tx: optax.GradientTransformation, with_ema: bool) -> TrainState:
  """Returns the first state of a round.

  Parameters and EMA are copied, because the training step donates every buffer of the state.
  """
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=jax.tree.map(jnp.copy, params),
    ema=jax.tree.map(jnp.copy, params) if with_ema else None,
    opt=tx.init(params),
    skipped=jnp.zeros((), jnp.int32),
    skipped_in_a_row=jnp.zeros((), jnp.int32),
  )


def handed_on(state: TrainState) -> Any:
  """Returns the parameters that a finished round saves: the EMA if there is one, else `params`."""
  return state.params if state.ema is None else state.ema


def names(tree: Any) -> list[str]:
  """Returns the names of a tree's leaves in order: ['params/down0_block0/conv1/kernel', ...].

  Checkpoints store each leaf under the leaf's name, which does not depend on the classes of the
  tree's nodes.
  """
  return [
    jax.tree_util.keystr(keys, simple=True, separator='/') or 'value'
    for keys, _ in jax.tree_util.tree_flatten_with_path(tree)[0]
  ]
