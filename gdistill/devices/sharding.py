"""The sharding rule: where batches, parameters and moments lie on the mesh."""

from typing import Any

import jax
import numpy as np
from jax import numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gdistill import errors
from gdistill.devices import mesh as meshes

# Leaves below so many elements are not worth a message each.
_SMALL = 2**16


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def batches_sharding(mesh: Mesh) -> NamedSharding:
  """[updates, rows, ...]: rows over every device."""
  return NamedSharding(mesh, PartitionSpec(None, meshes.AXES))


def leaf_sharding(
  mesh: Mesh, shape: tuple[int, ...], axes: tuple[str, ...] = ('fsdp',)
) -> NamedSharding:
  """The rule: each axis splits the largest dimension, of what is left, that it divides.

  Leaves of fewer than 2^16 elements stay whole. Parameters are split over fsdp; what only the
  optimiser needs, its moments and the running mean, over fsdp and then data: `held_sharding`.
  """
  split: list[tuple[str, ...]] = [() for _ in shape]
  left = list(shape)
  for axis in axes if np.prod(shape) >= _SMALL else ():
    size = mesh.shape[axis]
    able = [i for i, d in enumerate(left) if size > 1 and d % size == 0]
    if able:
      best = max(able, key=lambda i: left[i])
      split[best] += (axis,)
      left[best] //= size
  while split and not split[-1]:
    split.pop()
  names = (found[0] if len(found) == 1 else found or None for found in split)
  return NamedSharding(mesh, PartitionSpec(*names))


def held_sharding(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
  """Of moments and running means, which no forward pass needs whole."""
  return leaf_sharding(mesh, shape, ('fsdp', 'data'))


def tree_shardings(mesh: Mesh, tree: Any) -> Any:
  """leaf_sharding for every leaf of a tree of parameters or their shapes."""
  return jax.tree.map(lambda leaf: leaf_sharding(mesh, leaf.shape), tree)


def gather(leaf: jax.Array, spec: PartitionSpec) -> jax.Array:
  """Within shard_map: the whole leaf from the shards of `leaf_sharding`; its gradient is summed
  over fsdp and scattered."""
  for dimension, names in enumerate(spec):
    if 'fsdp' in _names(names):
      return jax.lax.all_gather(leaf, 'fsdp', axis=dimension, tiled=True)
  return leaf


def mean_gradient(
  mesh: Mesh, grad: jax.Array, spec: PartitionSpec, held: PartitionSpec
) -> jax.Array:
  """Within shard_map: the mean over all devices of the gradient of what `gather` was given.

  `spec` is the parameter's, over fsdp, along which the gradient is summed already where it names
  it; `held` that of its moments: the mean lands split so, in one reduction.
  """
  left = [axis for axis in meshes.AXES if mesh.shape[axis] > 1 and not _splits(spec, axis)]
  if _splits(held, 'data'):
    left.remove('data')
    where = next(i for i, names in enumerate(held) if 'data' in _names(names))
    grad = jax.lax.psum_scatter(grad, 'data', scatter_dimension=where, tiled=True)
  return (jax.lax.psum(grad, tuple(left)) if left else grad) / mesh.size


def squares_of_split(mesh: Mesh, tree: Any, specs: Any) -> jax.Array:
  """Within shard_map: [leaves], the sum of squares of each leaf of a tree split as `specs` say."""
  found, split = [], []
  for leaf, spec in zip(jax.tree.leaves(tree), jax.tree.leaves(specs), strict=True):
    square = jnp.sum(jnp.square(leaf))
    split.append(any(spec))
    if any(spec):
      holders = np.prod([mesh.shape[axis] for axis in meshes.AXES if _splits(spec, axis)])
      square *= holders / mesh.size  # as many devices hold the same part
    found.append(square)
  own = jnp.stack(found)
  if not any(split):
    return own
  # One message for all leaves; those that are whole everywhere stay as they are.
  return jnp.where(np.array(split), jax.lax.psum(own, meshes.AXES), own)


def _names(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
  return (entry,) if isinstance(entry, str) else entry or ()


def _splits(spec: PartitionSpec, axis: str) -> bool:
  return any(axis in _names(entry) for entry in spec)


def check_fsdp(mesh: Mesh, params: Any) -> None:
  """An fsdp axis that divides nothing would silently shard nothing."""
  size = mesh.shape['fsdp']
  shapes = [leaf.shape for leaf in jax.tree.leaves(params) if leaf.size >= _SMALL]
  if size > 1 and not any(d % size == 0 for shape in shapes for d in shape):
    raise errors.ConfigError(
      f'mesh.fsdp={size} divides no dimension of any parameter of {_SMALL:,} elements or more '
      f'({len(shapes)} of them); lower it'
    )


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
  """The rows of a batch that this process's devices work on, ascending."""
  places = batches_sharding(mesh).addressable_devices_indices_map((1, batch_size))
  return np.unique(np.concatenate([np.arange(batch_size)[rows] for _, rows in places.values()]))


def put_batches(mesh: Mesh, batch_size: int, batches: Any) -> Any:
  """This process's rows [updates, rows, ...] to arrays whose rows are spread over the mesh."""
  sharding = batches_sharding(mesh)
  if jax.process_count() == 1:
    return jax.device_put(batches, sharding)
  place = {int(row): i for i, row in enumerate(local_rows(mesh, batch_size))}

  def put(a):
    def shard(index):
      first, last, _ = index[1].indices(batch_size)
      return a[:, place[first] : place[last - 1] + 1]

    return jax.make_array_from_callback((len(a), batch_size, *a.shape[2:]), sharding, shard)

  return jax.tree.map(put, batches)


def put_like(shardings: Any, tree: Any) -> Any:
  """Host or device arrays to the given shardings, in buffers of their own."""
  if jax.process_count() == 1:
    return jax.device_put(tree, shardings, may_alias=False)
  return jax.tree.map(
    lambda a, s: jax.make_array_from_callback(np.shape(a), s, lambda i: np.asarray(a)[i]),
    tree,
    shardings,
  )
