"""Conditions of a network: the null condition, label dropout and negative prompts."""

from collections.abc import Callable

import jax
from jax import numpy as jnp

from gdistill.core import types

NULL_LABEL = -1  # its one-hot is all zeros, so the network needs no extra row and no branch


def null(cond: types.Cond) -> types.Cond:
  """Returns the conditions of the batch with every label replaced by the null label."""
  return {**cond, 'label': jnp.full_like(cond['label'], NULL_LABEL)}


def drop(cond: types.Cond, keys: types.Keys, p: float) -> types.Cond:
  """Removes the label of each example with probability p (label dropout, CFG's p_uncond)."""
  dropped = jax.vmap(lambda key: jax.random.bernoulli(key, p))(keys)
  return {**cond, 'label': jnp.where(dropped, NULL_LABEL, cond['label'])}


def instead(other: types.Cond) -> Callable[[types.Cond], types.Cond]:
  """Returns a function cond -> cond that gives every example the condition `other`.

  Used for a negative prompt: guidance then points away from `other`, not from the null condition.
  """

  def null(cond):
    return {**cond, **{k: jnp.broadcast_to(v, cond[k].shape) for k, v in other.items()}}

  return null
