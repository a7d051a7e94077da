"""What a network is conditioned on, and what it sees when it is conditioned on nothing."""

from collections.abc import Callable

import jax
from jax import numpy as jnp

from gdistill.core import types

NULL_LABEL = -1  # a zero one-hot: no extra row in the network, no branch


def null(cond: types.Cond) -> types.Cond:
  """The same batch with every condition removed."""
  return {**cond, 'label': jnp.full_like(cond['label'], NULL_LABEL)}


def drop(cond: types.Cond, keys: types.Keys, p: float) -> types.Cond:
  """Each example loses its condition with probability p (label dropout, CFG's p_uncond)."""
  dropped = jax.vmap(lambda key: jax.random.bernoulli(key, p))(keys)
  return {**cond, 'label': jnp.where(dropped, NULL_LABEL, cond['label'])}


def instead(other: types.Cond) -> Callable[[types.Cond], types.Cond]:
  """cond -> the same batch under `other`, one condition for all: that of a negative prompt."""

  def null(cond):
    return {**cond, **{k: jnp.broadcast_to(v, cond[k].shape) for k, v in other.items()}}

  return null
