"""Tests of leaves: which trees can be saved, which targets fit, and where leaves are placed."""

import os

import jax
import numpy as np
import pytest
import trees
from jax import numpy as jnp

from gdistill import errors
from gdistill.workdir import checkpoints
from gdistill.workdir import step_checkpoints


def test_leaves_go_where_the_shardings_say(tmp_path):
  mesh = jax.make_mesh((1,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
  tree = {'a': jnp.ones((4, 2)), 'b': {'c': jnp.zeros(3)}}
  checkpoints.save(tmp_path / 'c', tree)
  for shardings in (sharding, {'a': sharding, 'b': {'c': sharding}}):
    for target in (tree, None):
      back = checkpoints.restore(tmp_path / 'c', target, shardings)
      assert trees.same(back, tree)
      assert all(x.sharding == sharding for x in jax.tree.leaves(back))


def test_nothing_is_cast_on_the_way_to_a_device(tmp_path):
  sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  checkpoints.save(tmp_path / 'c', {'n': np.int64(2**40)})
  with pytest.raises(errors.CheckpointError, match="leaf 'n' would be cast from int64 to int32"):
    checkpoints.restore(tmp_path / 'c', shardings=sharding)


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_numbers_that_are_not_finite_are_refused(tmp_path, bad, dtype):
  tree = {'a': jnp.ones(3), 'b': {'c': jnp.ones(3, dtype).at[1].set(bad)}, 'd': np.nan}
  with pytest.raises(errors.NumericsError, match="leaf 'b/c' is not finite"):
    checkpoints.save(tmp_path / 'c', tree)
  assert not (tmp_path / 'c').exists()


@pytest.mark.parametrize(
  'tree, text',
  [
    ({'a': 'text'}, "leaf 'a' has dtype <U4; put the value in meta"),
    ({'a': object()}, "leaf 'a' has dtype object; put"),
    ({'a': jax.random.key(0)}, "leaf 'a'"),
    ({'a/b': 1, 'a': {'b': 2}}, "two leaves are named 'a/b'"),
    ({'a/b': 1, 'a': 2}, "'a' is the name of a leaf and of a branch"),
  ],
)
def test_what_could_not_come_back_is_refused(tmp_path, tree, text):
  with pytest.raises(errors.CheckpointError, match=text):
    checkpoints.save(tmp_path / 'c', tree)
  assert not (tmp_path / 'c').exists()


KERNEL = {'params': {'a': jnp.ones((3, 4)), 'b': jnp.zeros(2)}}


@pytest.mark.parametrize(
  'target, text',
  [
    ({'params': {'a': jnp.ones((3, 5)), 'b': jnp.zeros(2)}}, r"'params/a'.*\[3, 4\].*\[3, 5\]"),
    (
      {'params': {'a': jnp.ones((3, 5), jnp.bfloat16), 'b': jnp.zeros(2)}},
      "'params/a' has dtype float32 and bfloat16 is expected",
    ),
    ({'params': {'a': jnp.ones((3, 4))}}, "has a leaf 'params/b'"),
    ({'params': {**KERNEL['params'], 'c': jnp.ones(1)}}, "has no leaf 'params/c'"),
    ({'ema': KERNEL['params']}, "has no leaf 'ema/a'"),
  ],
)
def test_another_target_is_an_error_naming_the_first_leaf(tmp_path, target, text):
  step_checkpoints.save_step(tmp_path, 3, KERNEL)
  for restore in (checkpoints.restore, lambda _, t: step_checkpoints.restore_latest(tmp_path, t)):
    with pytest.raises(errors.CheckpointError, match=f'{tmp_path}/3.*{text}.*; use the model'):
      restore(tmp_path / '3', target)
  assert os.listdir(tmp_path) == ['3']  # not set aside: the step is not damaged
