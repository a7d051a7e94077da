"""Builds and compiles the train step, which updates parameters and EMA several times per call."""

from collections.abc import Callable
from typing import Any

import jax
import optax
from jax import numpy as jnp
from jax.sharding import Mesh

from gdistill.devices import sharding
from gdistill.recipe import settings as recipes
from gdistill.training import gradient as gradients
from gdistill.workdir import state as states


def optimizer(settings: recipes.Training) -> optax.GradientTransformation:
  """Returns Adam with decoupled weight decay; `_update` clips gradients and multiplies by -lr."""
  return optax.chain(
    optax.scale_by_adam(settings.beta1, settings.beta2, settings.adam_eps),
    optax.add_decayed_weights(settings.weight_decay, _decays),
  )


def _decays(params: Any) -> Any:
  """Tells which parameters get weight decay: all but the fixed embedding of the empty prompt."""
  return jax.tree_util.tree_map_with_path(lambda path, _: path[0].key != 'null_text', params)


def learning_rate(
  step: jax.Array, lr: jax.Array, steps: jax.Array, warmup: int, anneal: bool
) -> jax.Array:
  """Returns lr min(1, (step + 1) / warmup), times 1 - step / steps with `anneal`.

  `steps` is the number of updates in the round.
  """
  rate = lr * jnp.minimum(1.0, (step + 1) / warmup) if warmup else lr
  return rate * (1.0 - step / steps) if anneal else rate


def numbers(steps: int, lr: float, num_steps: int, key: jax.Array) -> dict:
  """Returns the arguments of the compiled train step that differ between rounds of a stage."""
  return {
    'key': jax.random.key_data(key),
    'lr': jnp.float32(lr),
    'steps': jnp.float32(steps),
    'num_steps': jnp.int32(num_steps),
  }


def make_step(
  loss: gradients.Loss, settings: recipes.Training, unrolled: bool, mesh: Mesh | None = None
) -> Callable:
  """Returns a function (state, teacher_params, batches [S, B, ...], numbers) -> (state, metrics).

  One call makes S updates and returns the metrics of the last update. An update whose loss or
  gradient norm is not finite changes only the counters. The metric `broken` is the index of the
  first leaf whose gradient was not finite in any of the S updates, or -1. With `unrolled`, scans
  are unrolled into straight code, because on a CPU the weight gradient of a convolution inside a
  scan is some 60 times slower. With `mesh`, `gradient.over_mesh` reduces the gradient over devices.
  """
  gradient = gradients.over_microbatches(loss, settings.accumulation, unrolled)
  update = _update(gradients.over_mesh(gradient, mesh), settings)

  def step(state, teacher, batches, given):
    def body(state, batch):
      return update(state, batch, teacher, given)

    if unrolled or jax.tree.leaves(batches)[0].shape[0] == 1:
      broken = jnp.int32(-1)
      for i in range(jax.tree.leaves(batches)[0].shape[0]):
        state, metrics = body(state, jax.tree.map(lambda a, i=i: a[i], batches))
        broken = jnp.where(broken < 0, metrics['broken'], broken)
      return state, {**metrics, 'broken': broken}
    state, metrics = jax.lax.scan(body, state, batches)
    # argmax finds the first update with a broken leaf, or 0 if no update has a broken leaf.
    broken = metrics['broken'][jnp.argmax(metrics['broken'] >= 0)]
    return state, {**jax.tree.map(lambda a: a[-1], metrics), 'broken': broken}

  return step


def _update(gradient: Callable, settings: recipes.Training) -> Callable:
  """Returns a function (state, batch, teacher, numbers) -> (state, metrics) that makes one update.

  The argument `gradient` is a function that `over_mesh` in gradient.py returned.
  """
  tx = optimizer(settings)

  def update(state, batch, teacher, given):
    key = jax.random.fold_in(jax.random.wrap_key_data(given['key']), state.step)
    value, grads, squares = gradient(state.params, teacher, batch, key, given['num_steps'])
    norm = jnp.sqrt(jnp.sum(squares))
    finite = jnp.isfinite(value) & jnp.isfinite(norm)
    rate = learning_rate(state.step, given['lr'], given['steps'], settings.warmup, settings.anneal)

    def taken(params, ema, opt):
      shrink = settings.grad_clip / jnp.maximum(norm, settings.grad_clip)
      updates, opt = tx.update(jax.tree.map(lambda g: g * shrink, grads), opt, params)
      params = jax.tree.map(lambda p, u: p - rate * u, params, updates)
      if ema is not None:
        ema = jax.tree.map(lambda e, p: e + (1.0 - settings.ema) * (p - e), ema, params)
      return params, ema, opt

    # lax.cond is used, because selecting between new and old values leaf by leaf took a fifth of
    # the time of a small network's train step.
    skipped = lambda *old: old
    params, ema, opt = jax.lax.cond(finite, taken, skipped, state.params, state.ema, state.opt)
    state = states.TrainState(
      step=state.step + 1,
      params=params,
      ema=ema,
      opt=opt,
      skipped=state.skipped + ~finite,
      skipped_in_a_row=jnp.where(finite, 0, state.skipped_in_a_row + 1),
    )
    metrics = {
      'loss': value,
      'grad_norm': norm,
      'lr': rate,
      'skipped': state.skipped,
      'skipped_in_a_row': state.skipped_in_a_row,
      'broken': _first(~jnp.isfinite(squares)),
    }
    return state, metrics

  return update


def _first(flags: jax.Array) -> jax.Array:
  """Returns the index of the first flag that is True, or -1."""
  return jnp.where(jnp.any(flags), jnp.argmax(flags), -1)


def trace_step(step: Callable, state: Any, *more: Any) -> jax.stages.Traced:
  """Traces a train step, to be lowered and compiled ahead of time: JAX never compiles it unnoticed.

  `state` and `more` are arrays, or shapes with shardings. The compiled step donates the state, and
  returns a state with the shardings of `state`.
  """
  out = jax.tree.map(lambda a: a.sharding, state), None
  return jax.jit(step, donate_argnums=0, out_shardings=out).trace(state, *more)


def state_shardings(mesh: Mesh, state: states.TrainState) -> states.TrainState:
  """Returns the sharding of each leaf of a state, chosen by the leaf's shape."""
  held = jax.tree.map(lambda leaf: sharding.held_sharding(mesh, leaf.shape), state)
  return held.replace(params=sharding.tree_shardings(mesh, state.params))
