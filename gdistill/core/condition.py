"""Conditions of a network: the null condition, label dropout and negative prompts."""

from collections.abc import Callable

import jax
from jax import numpy as jnp

from gdistill.core import types

NULL_LABEL = -1  # jax.nn.one_hot(-1) is all zeros, so one-hot class layers need no extra row


def null(cond: types.Cond) -> types.Cond:
  """Returns the conditions of the batch with every label replaced by the null label."""
  return {**cond, 'label': jnp.full_like(cond['label'], NULL_LABEL)}


def drop(cond: types.Cond, keys: types.Keys, p: float) -> types.Cond:
  """Replaces each example's label by the null label with probability p (CFG's p_uncond)."""
  dropped = jax.vmap(lambda key: jax.random.bernoulli(key, p))(keys)
  return {**cond, 'label': jnp.where(dropped, NULL_LABEL, cond['label'])}


def instead(other: types.Cond) -> Callable[[types.Cond], types.Cond]:
  """Returns a function cond -> cond that gives every example the condition `other`.

  `other` is a negative prompt: guidance points away from `other`, not from the null condition.
  """

  def null(cond):
    return {**cond, **{k: jnp.broadcast_to(v, cond[k].shape) for k, v in other.items()}}

  return null
