"""A small training state for tests of checkpoints, and comparison of trees bit for bit."""

import typing

import jax
import numpy as np
import optax
from jax import numpy as jnp


class State(typing.NamedTuple):
  """A training state of named tuples, dicts and an optimiser state, with an empty field."""

  step: jax.Array
  params: dict
  opt: optax.OptState
  nothing: None = None


def state(seed: int) -> State:
  """Returns a state whose numbers depend on the seed."""
  rng = np.random.default_rng(seed)
  params = {
    'down0': {'conv1': {'kernel': jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)}},
    'out': {'bias': jnp.asarray(rng.normal(size=5), jnp.bfloat16)},
  }
  opt = optax.adam(1e-3).init(params)
  return State(jnp.int32(seed), params, jax.tree.map(lambda x: x + jnp.ones_like(x), opt))


def same(a, b) -> bool:
  """Returns whether two trees have the same structure, dtypes, shapes and bits.

  chex.assert_trees_all_equal would accept 1 in place of 1.0.
  """
  return jax.tree.structure(a) == jax.tree.structure(b) and all(
    np.asarray(x).dtype == np.asarray(y).dtype
    and np.asarray(x).shape == np.asarray(y).shape
    and np.asarray(x).tobytes() == np.asarray(y).tobytes()
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )
