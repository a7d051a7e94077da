"""The sharding rule: where batches, parameters and optimiser moments lie on the mesh."""

from typing import Any

import jax
import numpy as np
from jax import numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gdistill import errors
from gdistill.devices import mesh as meshes

# Leaves (arrays of a tree) with fewer elements than _SMALL are not split, because each split leaf
# costs a message between devices.
_SMALL = 2**16


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding that puts a copy of an array on every device of the mesh."""
  return NamedSharding(mesh, PartitionSpec())


def batches_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of batches [updates, rows, ...]: the rows are split over all devices."""
  return NamedSharding(mesh, PartitionSpec(None, meshes.AXES))


def leaf_sharding(
  mesh: Mesh, shape: tuple[int, ...], axes: tuple[str, ...] = ('fsdp',)
) -> NamedSharding:
  """Returns the sharding of an array: each mesh axis in `axes` splits the largest dimension it can.

  A mesh axis can split a dimension that is divisible by the size of the mesh axis; a dimension that
  an earlier mesh axis has split counts with the size of one shard. Arrays of fewer than 2^16
  elements are not split. Parameters are split over fsdp; the optimiser's moments and the EMA are
  split over fsdp and then data (see `held_sharding`).
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
  """Returns the sharding of an array of optimiser moments or EMA: split over fsdp and then data."""
  return leaf_sharding(mesh, shape, ('fsdp', 'data'))


def tree_shardings(mesh: Mesh, tree: Any) -> Any:
  """Returns `leaf_sharding` of every leaf of a tree of parameters or of their shapes."""
  return jax.tree.map(lambda leaf: leaf_sharding(mesh, leaf.shape), tree)


def gather(leaf: jax.Array, spec: PartitionSpec) -> jax.Array:
  """Returns the unsplit array of which `leaf` is one shard; call inside shard_map.

  The gradient of `gather` is summed over fsdp and scattered to the shards.
  """
  for dimension, names in enumerate(spec):
    if 'fsdp' in _names(names):
      return jax.lax.all_gather(leaf, 'fsdp', axis=dimension, tiled=True)
  return leaf


def mean_gradient(
  mesh: Mesh, grad: jax.Array, spec: PartitionSpec, held: PartitionSpec
) -> jax.Array:
  """Returns the mean over all devices of a parameter's gradient; call inside shard_map.

  `spec` is the parameter's PartitionSpec: if `spec` names fsdp, the gradient of `gather` is already
  summed over fsdp. `held` is the PartitionSpec of the parameter's optimiser moments: the mean is
  split like the moments, and one reduction both sums and splits the gradient.
  """
  left = [axis for axis in meshes.AXES if mesh.shape[axis] > 1 and not _splits(spec, axis)]
  if _splits(held, 'data'):
    left.remove('data')
    where = next(i for i, names in enumerate(held) if 'data' in _names(names))
    grad = jax.lax.psum_scatter(grad, 'data', scatter_dimension=where, tiled=True)
  return (jax.lax.psum(grad, tuple(left)) if left else grad) / mesh.size


def squares_of_split(mesh: Mesh, tree: Any, specs: Any) -> jax.Array:
  """Returns [leaves], the sum of squares of each leaf (array) of a tree that is split by `specs`.

  Call inside shard_map.
  """
  found, split = [], []
  for leaf, spec in zip(jax.tree.leaves(tree), jax.tree.leaves(specs), strict=True):
    square = jnp.sum(jnp.square(leaf))
    split.append(any(spec))
    if any(spec):
      holders = np.prod([mesh.shape[axis] for axis in meshes.AXES if _splits(spec, axis)])
      # The psum below adds each shard once for every device that holds a copy of the shard, so the
      # sum of squares is divided by the number of copies.
      square *= holders / mesh.size
    found.append(square)
  own = jnp.stack(found)
  if not any(split):
    return own
  # One psum serves all leaves; the result of the psum is ignored for a leaf that is not split.
  return jnp.where(np.array(split), jax.lax.psum(own, meshes.AXES), own)


def _names(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
  return (entry,) if isinstance(entry, str) else entry or ()


def _splits(spec: PartitionSpec, axis: str) -> bool:
  return any(axis in _names(entry) for entry in spec)


def check_fsdp(mesh: Mesh, params: Any) -> None:
  """Raises ConfigError if mesh.fsdp divides no dimension of a large array, and thus splits none."""
  size = mesh.shape['fsdp']
  shapes = [leaf.shape for leaf in jax.tree.leaves(params) if leaf.size >= _SMALL]
  if size > 1 and not any(d % size == 0 for shape in shapes for d in shape):
    raise errors.ConfigError(
      f'mesh.fsdp={size} divides no dimension of any parameter of {_SMALL:,} elements or more '
      f'({len(shapes)} of them); lower mesh.fsdp'
    )


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
  """Returns the numbers of the batch rows that this process's devices hold, in ascending order."""
  places = batches_sharding(mesh).addressable_devices_indices_map((1, batch_size))
  return np.unique(np.concatenate([np.arange(batch_size)[rows] for _, rows in places.values()]))


def put_batches(mesh: Mesh, batch_size: int, batches: Any) -> Any:
  """Makes arrays [updates, batch_size, ...], split over the mesh, from each process's own rows."""
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
  """Returns copies of a tree's arrays, from host or devices, placed according to `shardings`."""
  if jax.process_count() == 1:
    return jax.device_put(tree, shardings, may_alias=False)
  return jax.tree.map(
    lambda a, s: jax.make_array_from_callback(np.shape(a), s, lambda i: np.asarray(a)[i]),
    tree,
    shardings,
  )
