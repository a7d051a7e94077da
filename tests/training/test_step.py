"""Tests of the train step: Adam by hand, clipping, warm-up, and updates that are not finite."""

import jax
import numpy as np
import parabola
from jax import numpy as jnp

from gdistill.training import step as train_step


def test_two_updates_are_adam_by_hand():
  s = parabola.changed(lr=0.1, anneal=True, ema=0.9, beta1=0.9, beta2=0.99, grad_clip=100.0)
  state, metrics = parabola.run(s, [np.full((1, 2), 3.0)] * 2)
  a = ema = 1.0
  m = v = 0.0
  for k in range(2):
    g = 2 * (a - 3.0)
    m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
    step = (m / (1 - 0.9 ** (k + 1))) / (np.sqrt(v / (1 - 0.99 ** (k + 1))) + 1e-8)
    a -= 0.1 * (1 - k / 10) * step  # lr falls linearly to zero over the round's ten updates
    ema = 0.9 * ema + 0.1 * a
  np.testing.assert_allclose(state.params['a'], a, rtol=1e-5)
  np.testing.assert_allclose(state.ema['a'], ema, rtol=1e-5)
  np.testing.assert_allclose(metrics[0]['loss'], 4.0)


def test_all_that_is_learned_decays_and_what_a_network_is_given_does_not():
  params = {'a': jnp.full(3, 2.0), 'null_text': jnp.full((2, 2), 5.0)}
  tx = train_step.optimizer(parabola.changed(weight_decay=0.25))
  still = jax.tree.map(jnp.zeros_like, params)
  updates, _ = tx.update(still, tx.init(params), params)
  # The gradient is zero, so the updates are the weight decay alone: 0.25 times 2.
  np.testing.assert_array_equal(updates['a'], np.full(3, 0.5))
  np.testing.assert_array_equal(updates['null_text'], np.zeros((2, 2)))


def test_several_updates_in_a_dispatch_are_the_same_updates():
  singles = [np.full((1, 2), float(i)) for i in range(4)]
  pairs = [np.concatenate(singles[i : i + 2]) for i in (0, 2)]
  one, _ = parabola.run(parabola.BASE, singles)
  many, _ = parabola.run(parabola.BASE, pairs, unrolled=False)
  assert int(many.step) == 4
  np.testing.assert_allclose(one.params['a'], many.params['a'], rtol=1e-6)


def test_an_update_that_is_not_finite_changes_nothing_but_the_counters():
  good, bad = np.full((1, 2), 3.0), np.array([[3.0, np.nan]])
  before, _ = parabola.run(parabola.BASE, [good])
  after, metrics = parabola.run(parabola.BASE, [good, bad, np.array([[np.inf, 0.0]])])
  assert (int(after.step), int(after.skipped), int(after.skipped_in_a_row)) == (3, 2, 2)
  for a, b in zip(jax.tree.leaves((before.params, before.ema, before.opt)),
                  jax.tree.leaves((after.params, after.ema, after.opt)), strict=True):  # fmt: skip
    np.testing.assert_array_equal(a, b)
  assert not np.isfinite(metrics[1]['loss'])
  again, _ = parabola.run(parabola.BASE, [good, bad, good])
  assert (int(again.skipped), int(again.skipped_in_a_row)) == (1, 0)


def test_warm_up_and_decay_are_within_the_round():
  rates = [
    float(train_step.learning_rate(jnp.int32(k), jnp.float32(2.0), jnp.float32(100.0), 4, True))
    for k in (0, 1, 3, 50, 99)
  ]
  np.testing.assert_allclose(rates, [0.5, 0.99, 1.94, 1.0, 0.02], rtol=1e-5)
  flat = train_step.learning_rate(jnp.int32(70), jnp.float32(2.0), jnp.float32(100.0), 0, False)
  np.testing.assert_allclose(flat, 2.0)


def test_the_gradient_is_clipped_by_its_global_norm():
  # The update does not show the clipping, because Adam divides by the gradient's scale. The second
  # moment shows it: (0.5)^2 (1 - beta2).
  state, metrics = parabola.run(parabola.changed(grad_clip=0.5), [np.full((1, 2), 10.0)])
  np.testing.assert_allclose(metrics[0]['grad_norm'], 18.0)
  np.testing.assert_allclose(state.opt[0].nu['a'], 0.25 * (1 - parabola.BASE.beta2), rtol=1e-4)
