"""The compiled train step: gradient over microbatches, reduction over the mesh, update."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import optax
from jax import numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from gdistill.devices import mesh as meshes
from gdistill.devices import sharding
from gdistill.recipe import settings as recipes
from gdistill.workdir import state as states

# (params, teacher_params, batch, key, num_steps) -> [B]
Loss = Callable[[Any, Any, Any, jax.Array, jax.Array], jax.Array]


def _learned(params: Any) -> Any:
  """Which parameters decay: all but the embedding of no text, which a network is given."""
  return jax.tree_util.tree_map_with_path(lambda path, _: path[0].key != 'null_text', params)


def optimizer(settings: recipes.Training) -> optax.GradientTransformation:
  """Adam, then decoupled weight decay; the step clips the gradient before and applies -lr."""
  return optax.chain(
    optax.scale_by_adam(settings.beta1, settings.beta2, settings.adam_eps),
    optax.add_decayed_weights(settings.weight_decay, _learned),
  )


def learning_rate(
  step: jax.Array, lr: jax.Array, steps: jax.Array, warmup: int, anneal: bool
) -> jax.Array:
  """lr min(1, (step + 1) / warmup), times 1 - step / steps when annealed: within the round."""
  rate = lr * jnp.minimum(1.0, (step + 1) / warmup) if warmup else lr
  return rate * (1.0 - step / steps) if anneal else rate


def numbers(steps: int, lr: float, num_steps: int, key: jax.Array) -> dict:
  """What differs between rounds, as arguments of the one compiled step of their stage."""
  return {
    'key': jax.random.key_data(key),
    'lr': jnp.float32(lr),
    'steps': jnp.float32(steps),
    'num_steps': jnp.int32(num_steps),
  }


def make_step(
  loss: Loss, settings: recipes.Training, unrolled: bool, mesh: Mesh | None = None
) -> Callable:
  """(state, teacher_params, batches [S, B, ...], numbers) -> (state, metrics of the last update).

  One call makes S updates. An update whose loss or gradient norm is not finite changes nothing
  but the counters. `unrolled` spells scans out: a convolution's weight gradient inside a scan is
  some 60 times slower on a CPU. `broken` among the metrics is the first leaf, in their order, whose
  gradient was not finite, or -1. On a `mesh` the gradient is reduced over slice and data once an
  update, however many microbatches it is made of, and lands split as the moments are; over fsdp,
  where parameters are gathered for each microbatch, it is reduced once for each.
  """
  tx = optimizer(settings)
  parts = settings.accumulation

  def gradient(
    params, teacher, batch, key, num_steps, whole=lambda params, teacher: (params, teacher)
  ):
    def value_and_grad(part):
      def mean_loss(params):
        return jnp.mean(loss(*whole(params, teacher), part, key, num_steps))

      return jax.value_and_grad(mean_loss)(params)

    def add(total, part):
      return jax.tree.map(jnp.add, total, value_and_grad(part)), None

    if parts == 1:
      return value_and_grad(batch)
    split = jax.tree.map(
      lambda a: a.reshape(a.shape[0] // parts, parts, *a.shape[1:]).swapaxes(0, 1), batch
    )
    zero = jax.tree.map(jnp.zeros_like, (jnp.zeros(()), params))
    total, _ = jax.lax.scan(add, zero, split, unroll=parts if unrolled else 1)
    return jax.tree.map(lambda a: a / parts, total)

  def reduced(params, teacher, batch, key, num_steps):
    """The mean loss and its gradient, split as the moments are, with the squares of each leaf."""
    if mesh is None or mesh.size == 1:
      value, grads = gradient(params, teacher, batch, key, num_steps)
      return value, grads, jnp.stack([jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)])
    # Said by hand, device by device. Left to itself the partitioner reduces once a microbatch,
    # once a leaf for the norm, and gathers activations where those are smaller than parameters.
    split = jax.tree.map(lambda s: s.spec, sharding.tree_shardings(mesh, (params, teacher)))
    held = jax.tree.map(lambda p: sharding.held_sharding(mesh, p.shape).spec, params)

    def own_rows(params, teacher, batch, key, num_steps):
      def whole(*trees):
        return jax.tree.map(sharding.gather, trees, split)

      value, grads = gradient(params, teacher, batch, key, num_steps, whole)
      grads = jax.tree.map(functools.partial(sharding.mean_gradient, mesh), grads, split[0], held)
      squares = sharding.squares_of_split(mesh, grads, held)
      return jax.lax.psum(value, meshes.AXES) / mesh.size, grads, squares

    everywhere, rows = PartitionSpec(), PartitionSpec(meshes.AXES)
    return jax.shard_map(
      own_rows, mesh=mesh, check_vma=False,
      in_specs=(*split, rows, everywhere, everywhere), out_specs=(everywhere, held, everywhere),
    )(params, teacher, batch, key, num_steps)  # fmt: skip

  def update(state, batch, teacher, given):
    key = jax.random.fold_in(jax.random.wrap_key_data(given['key']), state.step)
    value, grads, squares = reduced(state.params, teacher, batch, key, given['num_steps'])
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

    # A branch: selecting leaf by leaf between new and old took a fifth of a small network's step.
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

  def step(state, teacher, batches, given):
    def body(state, batch):
      return update(state, batch, teacher, given)

    if unrolled:
      broken = jnp.int32(-1)
      for i in range(jax.tree.leaves(batches)[0].shape[0]):
        state, metrics = body(state, jax.tree.map(lambda a, i=i: a[i], batches))
        broken = jnp.where(broken < 0, metrics['broken'], broken)
      return state, {**metrics, 'broken': broken}
    state, metrics = jax.lax.scan(body, state, batches)
    broken = metrics['broken'][jnp.argmax(metrics['broken'] >= 0)]  # of the first that had one
    return state, {**jax.tree.map(lambda a: a[-1], metrics), 'broken': broken}

  return step


def _first(flags: jax.Array) -> jax.Array:
  """Where the first one is up; -1 where none is."""
  return jnp.where(jnp.any(flags), jnp.argmax(flags), -1)


def compile_step(step: Callable, state: Any, *more: Any) -> Callable:
  """Ahead of time and donated: an executable that cannot compile a second time behind our back.

  Arguments are arrays, or shapes with shardings; the state leaves as it enters.
  """
  out = jax.tree.map(lambda a: a.sharding, state), None
  return jax.jit(step, donate_argnums=0, out_shardings=out).lower(state, *more).compile()


def state_shardings(mesh: Mesh, state: states.TrainState) -> states.TrainState:
  """Where each leaf of a state lies, from its shape."""
  held = jax.tree.map(lambda leaf: sharding.held_sharding(mesh, leaf.shape), state)
  return held.replace(params=sharding.tree_shardings(mesh, state.params))
