"""Computes the gradient of a mean loss over microbatches and over the mesh of devices."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax import numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from gdistill.devices import mesh as meshes
from gdistill.devices import sharding

# Type of a stage's loss: (params, teacher_params, batch, key, num_steps) -> [B].
Loss = Callable[[Any, Any, Any, jax.Array, jax.Array], jax.Array]


def over_microbatches(loss: Loss, parts: int, unrolled: bool) -> Callable:
  """Returns a function (params, teacher, batch, key, num_steps, whole) -> (mean loss, gradient).

  The batch is cut into `parts` microbatches, and the gradients of all microbatches are averaged.
  With `unrolled`, the scan over microbatches is fully unrolled. The function `whole(params,
  teacher)` is called for each microbatch and returns the parameters gathered from all shards.
  """

  def gradient(params, teacher, batch, key, num_steps, whole=lambda *trees: trees):
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

  return gradient


def over_mesh(gradient: Callable, mesh: Mesh | None) -> Callable:
  """Returns a function (params, teacher, batch, key, num_steps) -> (mean loss, gradient, squares).

  `gradient` is a function that `over_microbatches` returned; `squares` [leaves] holds the sum of
  squares of each leaf of the gradient. On a mesh, the gradient is reduced over the axes slice and
  data once per update, and each device gets the part of the gradient for which that device holds
  the optimiser moments. Over the axis fsdp the gradient is reduced once per microbatch, because the
  parameters are gathered for each microbatch.
  """
  if mesh is None or mesh.size == 1:

    def on_one_device(*args):
      value, grads = gradient(*args)
      return value, grads, jnp.stack([jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)])

    return on_one_device

  def on_all_devices(params, teacher, *rest):
    # shard_map is used, because XLA's own partitioner would reduce the gradient once per microbatch
    # and the norm once per leaf, and would gather activations that are smaller than the parameters.
    split = jax.tree.map(lambda s: s.spec, sharding.tree_shardings(mesh, (params, teacher)))
    held = jax.tree.map(lambda p: sharding.held_sharding(mesh, p.shape).spec, params)

    def on_own_rows(params, teacher, batch, key, num_steps):
      def whole(*trees):
        return jax.tree.map(sharding.gather, trees, split)

      value, grads = gradient(params, teacher, batch, key, num_steps, whole)
      grads = jax.tree.map(functools.partial(sharding.mean_gradient, mesh), grads, split[0], held)
      squares = sharding.squares_of_split(mesh, grads, held)
      return jax.lax.psum(value, meshes.AXES) / mesh.size, grads, squares

    everywhere, rows = PartitionSpec(), PartitionSpec(meshes.AXES)
    return jax.shard_map(
      on_own_rows, mesh=mesh, check_vma=False,
      in_specs=(*split, rows, everywhere, everywhere), out_specs=(everywhere, held, everywhere),
    )(params, teacher, *rest)  # fmt: skip

  return on_all_devices
