"""Changes the conditions of a batch: null condition, label dropout and negative prompts."""

from collections.abc import Callable

import jax
from jax import numpy as jnp

from gdistill.core import types

# Label that means 'no class'. jax.nn.one_hot makes all zeros of -1, so a class layer on one-hot
# labels needs no extra row for the null label.
NULL_LABEL = -1


def null(cond: types.Cond) -> types.Cond:
  """Returns the conditions `cond` of a batch with every label replaced by the null label."""
  return {**cond, 'label': jnp.full_like(cond['label'], NULL_LABEL)}


def drop(cond: types.Cond, keys: types.Keys, p: float) -> types.Cond:
  """Replaces each example's label by the null label with probability p (p_uncond of CFG)."""
  dropped = jax.vmap(lambda key: jax.random.bernoulli(key, p))(keys)
  return {**cond, 'label': jnp.where(dropped, NULL_LABEL, cond['label'])}


def instead(other: types.Cond) -> Callable[[types.Cond], types.Cond]:
  """Returns a function that replaces the condition of every example of a batch by `other`.

  `other` is the condition of a negative prompt: guidance points away from `other` instead of from
  the null condition.
  """

  def null(cond):
    return {**cond, **{k: jnp.broadcast_to(v, cond[k].shape) for k, v in other.items()}}

  return null
