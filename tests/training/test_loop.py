"""Tests of the training loop's checks: a run ends when too many updates are not finite."""

import jax
import micro
import numpy as np
import parabola
import pytest
from jax import numpy as jnp

from gdistill import errors
from gdistill.training import loop
from gdistill.training import step as train_step
from gdistill.workdir import state as states


def test_the_first_leaf_whose_gradient_breaks_is_named():
  params = {'a': jnp.ones(2), 'b': {'c': jnp.ones(2), 'd': jnp.ones(2)}}

  def loss(p, teacher, batch, key, num_steps):
    # sqrt(0) is 0, but its derivative is infinite: the loss is finite, the gradient is not.
    broken = jnp.sqrt(jnp.abs(p['b']['c'] - 1)).sum() + jnp.sqrt(jnp.abs(p['b']['d'] - 1)).sum()
    return p['a'].sum() + broken + batch['x']

  step = train_step.make_step(loss, parabola.BASE, True)
  state = states.create(params, train_step.optimizer(parabola.BASE), False)
  given = train_step.numbers(10, 1.0, 1, jax.random.key(0))
  state, metrics = step(state, None, {'x': jnp.ones((1, 4))}, given)
  names = states.names(params)
  assert names == ['a', 'b/c', 'b/d'] and int(metrics['broken']) == 1
  assert np.isfinite(float(metrics['loss'])) and int(metrics['skipped']) == 1
  settings = micro.recipe(train={'max_skipped_in_a_row': 1}).train
  with pytest.raises(
    errors.NumericsError, match=r"in a row \(the first leaf is 'b/c', at a loss of"
  ):
    loop.Finite(settings, names).check(jax.device_get(metrics), 1)
  params = {'a': jnp.ones(2), 'b': {'c': jnp.ones(2) * 2, 'd': jnp.ones(2) * 2}}
  start = states.create(params, train_step.optimizer(parabola.BASE), False)
  fine, metrics = step(start, None, {'x': jnp.ones((1, 4))}, given)
  assert int(metrics['broken']) == -1 and int(fine.skipped) == 0


@pytest.mark.parametrize(('step', 'enough'), [(399, True), (400, False)])
def test_more_than_a_share_of_all_updates_ends_a_run(step, enough):
  settings = micro.recipe(train={'max_skipped_in_a_row': 20, 'max_skipped_percent': 5.0}).train
  finite = loop.Finite(settings, ['a', 'b'])
  row = {'skipped': 20, 'skipped_in_a_row': 0, 'broken': -1, 'loss': 1.0}
  finite.check(
    {**row, 'skipped': 19, 'broken': 1, 'loss': np.nan}, step
  )  # 19 < max_skipped_in_a_row
  if enough:  # the error names the leaf of the last broken gradient, from an earlier check
    with pytest.raises(
      errors.NumericsError, match=r"20 of 399 .* first leaf is 'b', at a loss of nan"
    ):
      finite.check(row, step)
  else:
    finite.check(row, step)
