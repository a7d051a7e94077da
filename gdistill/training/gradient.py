"""The gradient of a mean loss: over microbatches, and reduced over the mesh of devices."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax import numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from gdistill.devices import mesh as meshes
from gdistill.devices import sharding

# (params, teacher_params, batch, key, num_steps) -> [B]
Loss = Callable[[Any, Any, Any, jax.Array, jax.Array], jax.Array]


def over_microbatches(loss: Loss, parts: int, unrolled: bool) -> Callable:
  """Returns (params, teacher, batch, key, num_steps, whole) -> (mean loss, its gradient).

  The batch is cut into `parts` microbatches, whose gradients are averaged. With `unrolled`, the
  scan over microbatches is unrolled into straight code. `whole(params, teacher)` returns parameters
  gathered from all shards, and is called for each microbatch.
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
  """Returns (params, teacher, batch, key, num_steps) -> (mean loss, gradient, squares [leaves]).

  `gradient` is what `over_microbatches` returns; `squares` holds the sum of squares of each leaf of
  the gradient. On a mesh, the gradient is reduced over the axes slice and data once an update, and
  each device keeps the part whose moments it holds. Over fsdp, where each microbatch gathers the
  parameters, the gradient is reduced once a microbatch.
  """
  if mesh is None or mesh.size == 1:

    def on_one_device(*args):
      value, grads = gradient(*args)
      return value, grads, jnp.stack([jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)])

    return on_one_device

  def on_all_devices(params, teacher, *rest):
    # shard_map, because XLA's partitioner would reduce once a microbatch and once a leaf for the
    # norm, and would gather activations where these are smaller than the parameters.
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
