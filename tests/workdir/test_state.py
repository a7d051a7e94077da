"""Tests of the training state: its buffers, and the parameters that a finished round keeps."""

import chex
import jax
import numpy as np
from jax import numpy as jnp

from gdistill.cli import config_file
from gdistill.recipe import reading
from gdistill.training import step as train_step
from gdistill.workdir import state as states

SETTINGS = reading.from_config(config_file.load('configs/digits.py', [])).teacher


def fresh(with_ema=True):
  params = {'a': jnp.arange(4.0), 'b': {'c': jnp.ones((2, 3))}}
  return params, states.create(params, train_step.optimizer(SETTINGS), with_ema)


def test_every_leaf_has_its_own_buffer_because_the_step_donates_them_all():
  params, state = fresh()
  buffers = [a.unsafe_buffer_pointer() for a in jax.tree.leaves((params, state))]
  assert len(buffers) == len(set(buffers))


def test_a_donated_step_leaves_the_teachers_parameters_alone():
  params, state = fresh()
  before = jax.tree.map(np.array, params)
  double = jax.jit(lambda s: jax.tree.map(lambda a: a * 2, s), donate_argnums=0)
  jax.block_until_ready(double(state))
  chex.assert_trees_all_equal(params, before)


def test_what_is_handed_on_is_the_running_mean_where_there_is_one():
  _, state = fresh()
  moved = state.replace(ema=jax.tree.map(lambda a: a + 1, state.params))
  chex.assert_trees_all_equal(states.handed_on(moved), moved.ema)
  _, plain = fresh(with_ema=False)
  assert plain.ema is None and states.handed_on(plain) is plain.params
