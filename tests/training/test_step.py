"""The loop's arithmetic on a loss a child could minimise."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import micro
import numpy as np
import pytest
from jax import numpy as jnp

from gdistill import errors
from gdistill.cli import config_file
from gdistill.recipe import reading
from gdistill.training import loop
from gdistill.training import step as train_step
from gdistill.workdir import state as states

BASE = reading.from_config(config_file.load('configs/digits.py', [])).teacher
KEY = jax.random.key(0)


def loss(params, teacher, batch, key, num_steps):
  """(a - x)^2, its gradient 2 (a - x)."""
  return jnp.square(params['a'] - batch['x'])


def run(settings, xs, steps=10, unrolled=True, a=1.0):
  state = states.create({'a': jnp.float32(a)}, train_step.optimizer(settings), settings.ema > 0)
  step = train_step.make_step(loss, settings, unrolled)
  given = train_step.numbers(steps, settings.lr, 1, KEY)
  compiled, metrics = None, []
  for x in xs:
    batch = {'x': jnp.asarray(x, jnp.float32)}
    compiled = compiled or train_step.compile_step(step, state, None, batch, given)
    state, m = compiled(state, None, batch, given)
    metrics.append(jax.device_get(m))
  return state, metrics


def changed(**fields):
  return dataclasses.replace(BASE, **fields)


def test_two_updates_are_adam_by_hand():
  s = changed(lr=0.1, anneal=True, ema=0.9, beta1=0.9, beta2=0.99, grad_clip=100.0)
  state, metrics = run(s, [np.full((1, 2), 3.0)] * 2)
  a = ema = 1.0
  m = v = 0.0
  for k in range(2):
    g = 2 * (a - 3.0)
    m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
    step = (m / (1 - 0.9 ** (k + 1))) / (np.sqrt(v / (1 - 0.99 ** (k + 1))) + 1e-8)
    a -= 0.1 * (1 - k / 10) * step  # linear to zero over this round's ten updates
    ema = 0.9 * ema + 0.1 * a
  np.testing.assert_allclose(state.params['a'], a, rtol=1e-5)
  np.testing.assert_allclose(state.ema['a'], ema, rtol=1e-5)
  np.testing.assert_allclose(metrics[0]['loss'], 4.0)


def test_all_that_is_learned_decays_and_what_a_network_is_given_does_not():
  params = {'a': jnp.full(3, 2.0), 'null_text': jnp.full((2, 2), 5.0)}
  tx = train_step.optimizer(changed(weight_decay=0.25))
  still = jax.tree.map(jnp.zeros_like, params)
  updates, _ = tx.update(still, tx.init(params), params)
  np.testing.assert_array_equal(updates['a'], np.full(3, 0.5))  # 0.25 of 2, and no gradient
  np.testing.assert_array_equal(updates['null_text'], np.zeros((2, 2)))


def test_the_mean_is_taken_once_over_the_batch():
  _, metrics = run(changed(grad_clip=100.0), [np.array([[1.0, 2.0, 4.0, 5.0]])])
  np.testing.assert_allclose(metrics[0]['loss'], (0 + 1 + 9 + 16) / 4)
  np.testing.assert_allclose(metrics[0]['grad_norm'], 2 * (0 + 1 + 3 + 4) / 4)


@pytest.mark.parametrize('unrolled', [True, False])
def test_microbatches_give_the_gradient_of_the_whole(unrolled):
  xs = [np.array([[1.0, 2.0, 4.0, 5.0]])] * 3
  whole, _ = run(changed(batch_size=4), xs)
  parts, _ = run(changed(batch_size=4, accumulation=2), xs, unrolled=unrolled)
  np.testing.assert_allclose(whole.params['a'], parts.params['a'], rtol=1e-6)


def test_several_updates_in_a_dispatch_are_the_same_updates():
  one, _ = run(BASE, [np.full((1, 2), float(i)) for i in range(4)])
  many, _ = run(BASE, [np.stack([np.full(2, float(i)) for i in (j, j + 1)]) for j in (0, 2)],
                unrolled=False)  # fmt: skip
  assert int(many.step) == 4
  np.testing.assert_allclose(one.params['a'], many.params['a'], rtol=1e-6)


def test_an_update_that_is_not_finite_changes_nothing_but_the_counters():
  good, bad = np.full((1, 2), 3.0), np.array([[3.0, np.nan]])
  before, _ = run(BASE, [good])
  after, metrics = run(BASE, [good, bad, np.array([[np.inf, 0.0]])])
  assert (int(after.step), int(after.skipped), int(after.skipped_in_a_row)) == (3, 2, 2)
  for a, b in zip(jax.tree.leaves((before.params, before.ema, before.opt)),
                  jax.tree.leaves((after.params, after.ema, after.opt)), strict=True):  # fmt: skip
    np.testing.assert_array_equal(a, b)
  assert not np.isfinite(metrics[1]['loss'])
  mended, _ = run(BASE, [good, bad, good])
  assert (int(mended.skipped), int(mended.skipped_in_a_row)) == (1, 0)


def test_the_first_leaf_whose_gradient_breaks_is_named():
  params = {'a': jnp.ones(2), 'b': {'c': jnp.ones(2), 'd': jnp.ones(2)}}

  def loss(p, teacher, batch, key, num_steps):
    # sqrt(0) is 0 and its derivative is not finite: the loss looks well.
    broken = jnp.sqrt(jnp.abs(p['b']['c'] - 1)).sum() + jnp.sqrt(jnp.abs(p['b']['d'] - 1)).sum()
    return p['a'].sum() + broken + batch['x']

  step = train_step.make_step(loss, BASE, True)
  state = states.create(params, train_step.optimizer(BASE), False)
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
  start = states.create(params, train_step.optimizer(BASE), False)
  fine, metrics = step(start, None, {'x': jnp.ones((1, 4))}, given)
  assert int(metrics['broken']) == -1 and int(fine.skipped) == 0


@pytest.mark.parametrize(('step', 'enough'), [(399, True), (400, False)])
def test_more_than_a_share_of_all_updates_ends_a_run(step, enough):
  settings = micro.recipe(train={'max_skipped_in_a_row': 20, 'max_skipped_percent': 5.0}).train
  finite = loop.Finite(settings, ['a', 'b'])
  row = {'skipped': 20, 'skipped_in_a_row': 0, 'broken': -1, 'loss': 1.0}
  finite.check({**row, 'skipped': 19, 'broken': 1, 'loss': np.nan}, step)  # too few to judge by
  if enough:  # the leaf is of the last that broke, long ago
    with pytest.raises(
      errors.NumericsError, match=r"20 of 399 .* first leaf is 'b', at a loss of nan"
    ):
      finite.check(row, step)
  else:
    finite.check(row, step)


def test_warm_up_and_decay_are_within_the_round():
  rates = [
    float(train_step.learning_rate(jnp.int32(k), jnp.float32(2.0), jnp.float32(100.0), 4, True))
    for k in (0, 1, 3, 50, 99)
  ]
  np.testing.assert_allclose(rates, [0.5, 0.99, 1.94, 1.0, 0.02], rtol=1e-5)
  flat = train_step.learning_rate(jnp.int32(70), jnp.float32(2.0), jnp.float32(100.0), 0, False)
  np.testing.assert_allclose(flat, 2.0)


def test_the_gradient_is_clipped_by_its_global_norm():
  # Adam divides the scale away, so what shows is the second moment: (0.5)^2 (1 - beta2).
  state, metrics = run(changed(grad_clip=0.5), [np.full((1, 2), 10.0)])
  np.testing.assert_allclose(metrics[0]['grad_norm'], 18.0)
  np.testing.assert_allclose(state.opt[0].nu['a'], 0.25 * (1 - BASE.beta2), rtol=1e-4)


REDUCTIONS = """
import dataclasses, json, math, re
import jax
jax.config.update('jax_num_cpu_devices', 8)
from jax import numpy as jnp
from gdistill.cli import config_file
from gdistill.devices import mesh as meshes, sharding
from gdistill.recipe import reading
from gdistill.training import step as train_step
from gdistill.workdir import state as states

sharding._SMALL = 0
base = reading.from_config(config_file.load('configs/digits.py', [])).teacher


def loss(p, teacher, batch, key, num_steps):
  return jnp.square(jnp.tanh(batch['x'] @ p['a']) @ p['b']).sum(-1)


def placed(tree, shardings):
  return jax.tree.map(
    lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), tree, shardings
  )


out = {}
for parts, fsdp in ((1, 1), (4, 1), (1, 2), (2, 2)):
  mesh = meshes.make_mesh(-1, fsdp)
  settings = dataclasses.replace(base, batch_size=64, accumulation=parts)
  params = {'a': jnp.ones((16, 64)), 'b': jnp.ones((64, 8))}
  shapes = jax.eval_shape(lambda: states.create(params, train_step.optimizer(settings), True))
  given = jax.eval_shape(lambda: train_step.numbers(1, 1.0, 1, jax.random.key(0)))
  rows = {'x': jax.ShapeDtypeStruct((1, 64, 16), jnp.float32)}
  step = train_step.compile_step(
    train_step.make_step(loss, settings, True, mesh),
    placed(shapes, train_step.state_shardings(mesh, shapes)), None,
    placed(rows, {'x': sharding.batches_sharding(mesh)}),
    placed(given, jax.tree.map(lambda _: sharding.replicated(mesh), given)),
  )
  found = {}
  for kind in ('all-reduce', 'reduce-scatter'):
    lines = re.findall(r'= (\\S.*?) ' + kind + r'(?:-start)?\\(', step.as_text())
    shapes = re.findall(r'\\[([0-9,]*)\\]', ' '.join(lines))
    sizes = [math.prod(map(int, filter(None, shape.split(',')))) for shape in shapes]
    found[kind] = sorted(n for n in sizes if n > 1)
  out[f'{parts} {fsdp}'] = found
print(json.dumps(out))
"""


def test_the_gradient_is_reduced_once_an_update_however_many_microbatches():
  done = subprocess.run(
    [sys.executable, '-c', REDUCTIONS], capture_output=True, text=True, check=False,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'}, cwd=pathlib.Path(__file__).parents[2],
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout)
  a, b = 16 * 64, 64 * 8  # elements of the two parameters
  # Over fsdp each microbatch scatters its sum; over data the shards are scattered once. Nothing
  # else is sent but the loss and, where leaves are split, the squares of both.
  n = {'1': 8, '2': 4}  # devices along data, by those along fsdp
  for name, given in found.items():
    parts, fsdp = name.split()
    over_fsdp = sorted([a // 2, b // 2] * int(parts)) if fsdp == '2' else []
    over_data = [a // int(fsdp) // n[fsdp], b // int(fsdp) // n[fsdp]]
    assert given == {'all-reduce': [2], 'reduce-scatter': sorted(over_fsdp + over_data)}, name


def test_small_leaves_are_reduced_whole_with_the_loss_in_one_message():
  done = subprocess.run(
    [sys.executable, '-c', REDUCTIONS.replace('sharding._SMALL = 0\n', '')],
    capture_output=True, text=True, check=False,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'}, cwd=pathlib.Path(__file__).parents[2],
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  for given in json.loads(done.stdout).values():
    assert given == {'all-reduce': [64 * 8, 16 * 64], 'reduce-scatter': []}
