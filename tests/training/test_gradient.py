"""Tests of the gradient: over microbatches, and reduced over a mesh of eight devices."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import parabola
import pytest


def test_the_mean_is_taken_once_over_the_batch():
  _, metrics = parabola.run(parabola.changed(grad_clip=100.0), [np.array([[1.0, 2.0, 4.0, 5.0]])])
  np.testing.assert_allclose(metrics[0]['loss'], (0 + 1 + 9 + 16) / 4)
  np.testing.assert_allclose(metrics[0]['grad_norm'], 2 * (0 + 1 + 3 + 4) / 4)


@pytest.mark.parametrize('unrolled', [True, False])
def test_microbatches_give_the_gradient_of_the_whole(unrolled):
  xs = [np.array([[1.0, 2.0, 4.0, 5.0]])] * 3
  settings = parabola.changed(batch_size=4, accumulation=2)
  whole, expected = parabola.run(parabola.changed(batch_size=4), xs)
  parts, metrics = parabola.run(settings, xs, unrolled=unrolled)
  np.testing.assert_allclose(whole.params['a'], parts.params['a'], rtol=1e-6)
  # Adam hides the scale of a gradient, so the norm is compared too.
  for name in ('loss', 'grad_norm'):
    np.testing.assert_allclose(metrics[-1][name], expected[-1][name], rtol=1e-6)


# Prints {'<microbatches> <fsdp>': {collective: sizes of its operands}} of compiled train steps on
# eight devices; the arguments are the numbers of rows and columns of the parameter a.
REDUCTIONS = """
import dataclasses, json, math, re, sys
import jax
jax.config.update('jax_num_cpu_devices', 8)
from jax import numpy as jnp
from gdistill.cli import config_file
from gdistill.devices import mesh as meshes, sharding
from gdistill.recipe import reading
from gdistill.training import step as train_step
from gdistill.workdir import state as states

height, width = map(int, sys.argv[1:])
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
  params = {'a': jnp.ones((height, width)), 'b': jnp.ones((width, height // 2))}
  shapes = jax.eval_shape(lambda: states.create(params, train_step.optimizer(settings), True))
  given = jax.eval_shape(lambda: train_step.numbers(1, 1.0, 1, jax.random.key(0)))
  rows = {'x': jax.ShapeDtypeStruct((1, 64, height), jnp.float32)}
  step = train_step.trace_step(
    train_step.make_step(loss, settings, True, mesh),
    placed(shapes, train_step.state_shardings(mesh, shapes)), None,
    placed(rows, {'x': sharding.batches_sharding(mesh)}),
    placed(given, jax.tree.map(lambda _: sharding.replicated(mesh), given)),
  ).lower().compile()
  found = {}
  for kind in ('all-reduce', 'reduce-scatter'):
    lines = re.findall(r'= (\\S.*?) ' + kind + r'(?:-start)?\\(', step.as_text())
    shapes = re.findall(r'\\[([0-9,]*)\\]', ' '.join(lines))
    sizes = [math.prod(map(int, filter(None, shape.split(',')))) for shape in shapes]
    found[kind] = sorted(n for n in sizes if n > 1)
  out[f'{parts} {fsdp}'] = found
print(json.dumps(out))
"""


def reductions(height, width):
  done = subprocess.run(
    [sys.executable, '-c', REDUCTIONS, str(height), str(width)],
    capture_output=True, text=True, check=False,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'}, cwd=pathlib.Path(__file__).parents[2],
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


def test_the_gradient_is_reduced_once_an_update_however_many_microbatches():
  a, b = 512 * 512, 512 * 256  # elements of the two parameters, large enough to be split
  # Over fsdp, each microbatch scatters its sum. Over data, the gradient is scattered once. Only the
  # loss and, where leaves are split, the sums of squares of both leaves are sent besides.
  data = {'1': 8, '2': 4}  # {devices along fsdp: devices along data}
  for name, given in reductions(512, 512).items():
    parts, fsdp = name.split()
    over_fsdp = sorted([a // 2, b // 2] * int(parts)) if fsdp == '2' else []
    over_data = [a // int(fsdp) // data[fsdp], b // int(fsdp) // data[fsdp]]
    assert given == {'all-reduce': [2], 'reduce-scatter': sorted(over_fsdp + over_data)}, name


def test_small_leaves_are_reduced_whole_with_the_loss_in_one_message():
  for given in reductions(16, 64).values():
    assert given == {'all-reduce': [64 * 8, 16 * 64], 'reduce-scatter': []}
