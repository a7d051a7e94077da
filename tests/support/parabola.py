"""Training steps on the loss (a - x)^2, whose gradient and Adam updates can be written by hand."""

import dataclasses

import jax
from jax import numpy as jnp

from gdistill.cli import config_file
from gdistill.recipe import reading
from gdistill.training import step as train_step
from gdistill.workdir import state as states

BASE = reading.from_config(config_file.load('configs/digits.py', [])).teacher
KEY = jax.random.key(0)


def loss(params, teacher, batch, key, num_steps):
  """(a - x)^2 for each x of the batch; the gradient with respect to a is 2 (a - x)."""
  return jnp.square(params['a'] - batch['x'])


def run(settings, xs, steps=10, unrolled=True, a=1.0):
  """Calls the compiled step once for each x [updates, rows]; returns (state, list of metrics)."""
  state = states.create({'a': jnp.float32(a)}, train_step.optimizer(settings), settings.ema > 0)
  step = train_step.make_step(loss, settings, unrolled)
  given = train_step.numbers(steps, settings.lr, 1, KEY)
  compiled, metrics = None, []
  for x in xs:
    batch = {'x': jnp.asarray(x, jnp.float32)}
    compiled = compiled or train_step.trace_step(step, state, None, batch, given).lower().compile()
    state, m = compiled(state, None, batch, given)
    metrics.append(jax.device_get(m))
  return state, metrics


def changed(**fields):
  """Returns the training settings of the digits' teacher with some fields changed."""
  return dataclasses.replace(BASE, **fields)
