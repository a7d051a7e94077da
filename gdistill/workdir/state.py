"""What training carries from step to step."""

from typing import Any

import flax.struct
import jax
import optax
from jax import numpy as jnp


@flax.struct.dataclass
class TrainState:
  step: jax.Array  # updates done in this round, skipped ones among them
  params: Any
  ema: Any  # None where a stage keeps no running mean
  opt: optax.OptState
  skipped: jax.Array  # updates not taken because loss or gradient was not finite
  skipped_in_a_row: jax.Array


def create(params: Any, tx: optax.GradientTransformation, with_ema: bool) -> TrainState:
  """A round's first state. Every leaf has its own buffer, because the step donates them all."""
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=jax.tree.map(jnp.copy, params),
    ema=jax.tree.map(jnp.copy, params) if with_ema else None,
    opt=tx.init(params),
    skipped=jnp.zeros((), jnp.int32),
    skipped_in_a_row=jnp.zeros((), jnp.int32),
  )


def handed_on(state: TrainState) -> Any:
  """The parameters a finished round leaves: the running mean where there is one."""
  return state.params if state.ema is None else state.ema


def names(tree: Any) -> list[str]:
  """['params/down0_block0/conv1/kernel', ...] of the leaves in their order: what a file may call
  them, since it outlives the classes of the tree."""
  return [
    jax.tree_util.keystr(keys, simple=True, separator='/') or 'value'
    for keys, _ in jax.tree_util.tree_flatten_with_path(tree)[0]
  ]
