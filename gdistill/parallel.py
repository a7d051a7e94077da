"""Devices: the mesh, the one sharding rule, multi-process start, host batches to global arrays."""

import contextlib
import os
import stat
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gdistill import errors


def make_cpu_devices(count: int) -> None:
  """Makes `count` devices of a CPU; must come before anything asks for a device.

  XLA runs small convolutions on one core whatever it is given, so two devices are what makes two
  cores work. The number is the run's and not the machine's: it decides the last bits.
  """
  with contextlib.suppress(RuntimeError):  # devices are made already: a process keeps what it has
    jax.config.update('jax_num_cpu_devices', count)


def start(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
  """Joins the other processes of a run; does nothing when no flag is given."""
  given = {'coordinator': coordinator, 'num_processes': num_processes, 'process_id': process_id}
  missing = [name for name, value in given.items() if value is None]
  if len(missing) == len(given):
    return
  if missing:
    name = next(n for n in given if n not in missing)
    raise errors.ConfigError(
      f'--{name}={given[name]!r} needs --{" and --".join(missing)} beside it'
    )
  if num_processes < 1 or not 0 <= process_id < num_processes:
    raise errors.ConfigError(
      f'--process_id={process_id} must be from 0 to --num_processes - 1 = {num_processes - 1}'
    )
  host, _, port = coordinator.rpartition(':')
  if not host or not port.isdigit():
    raise errors.ConfigError(f'--coordinator={coordinator!r} must be HOST:PORT of process 0')
  try:
    jax.distributed.initialize(coordinator, num_processes, process_id)
  except Exception as e:  # grpc and JAX each have their own
    raise errors.ConfigError(f'--coordinator={coordinator!r} was not joined: {e}') from e


def agree(name: str, value: str) -> None:
  """Raises unless every process holds the same string (compared by its first 32 bytes)."""
  if jax.process_count() == 1:
    return
  from jax.experimental import multihost_utils

  mine = np.frombuffer(value.encode()[:32].ljust(32), np.uint8)
  everyone = np.asarray(multihost_utils.process_allgather(mine))
  odd = [i for i, row in enumerate(everyone) if not np.array_equal(row, everyone[0])]
  if odd:
    raise errors.ConfigError(
      f'{name}={value!r} differs between processes (process 0 against {odd}); '
      'start every process with the same command'
    )


def any_process(flag: bool) -> bool:
  """Whether the flag is up in some process; every process must ask."""
  if jax.process_count() == 1:
    return flag
  from jax.experimental import multihost_utils

  return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def barrier(name: str) -> None:
  """Waits until every process is here."""
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(name)


def check_compile_cache() -> None:
  """A compile cache that anyone may write to is a way to run anyone's code."""
  folder = os.environ.get('JAX_COMPILATION_CACHE_DIR') or jax.config.jax_compilation_cache_dir
  if folder and '://' not in folder and os.path.isdir(folder):
    mode = os.stat(folder).st_mode
    if mode & stat.S_IWOTH:
      raise errors.ConfigError(
        f'JAX_COMPILATION_CACHE_DIR={folder} is writable by everyone; chmod 0700 it'
      )


def make_mesh(data: int, fsdp: int) -> Mesh:
  """Axes data and fsdp over all devices; -1 takes what is left. One device is a mesh of one."""
  count = jax.device_count()
  sizes = {'data': data, 'fsdp': fsdp}
  known = int(np.prod([s for s in sizes.values() if s != -1]))
  sizes = {k: count // known if s == -1 else s for k, s in sizes.items()}
  if sizes['data'] * sizes['fsdp'] != count:
    raise errors.ConfigError(
      f'mesh.data={data} x mesh.fsdp={fsdp} must make the {count} devices there are; '
      'set one of them to -1'
    )
  return jax.make_mesh(
    (sizes['data'], sizes['fsdp']), ('data', 'fsdp'), axis_types=(AxisType.Auto,) * 2
  )


def check_batch(name: str, batch_size: int, accumulation: int, mesh: Mesh) -> None:
  """Each microbatch must split evenly over the devices."""
  if batch_size % (accumulation * mesh.size):
    raise errors.ConfigError(
      f'{name}.batch_size={batch_size} must be divisible by {mesh.size} devices x '
      f'{name}.accumulation={accumulation}'
    )


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def batches_sharding(mesh: Mesh) -> NamedSharding:
  """[updates, rows, ...]: rows over every device."""
  return NamedSharding(mesh, PartitionSpec(None, ('data', 'fsdp')))


def leaf_sharding(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
  """The rule: a leaf's largest dimension that the fsdp axis divides is split over it."""
  size = mesh.shape['fsdp']
  best = max((d for d in shape if d % size == 0), default=None) if size > 1 else None
  if best is None:
    return replicated(mesh)
  where = shape.index(best)
  return NamedSharding(mesh, PartitionSpec(*(None,) * where, 'fsdp'))


def tree_shardings(mesh: Mesh, tree: Any) -> Any:
  """leaf_sharding for every leaf of a tree of arrays or shapes."""
  return jax.tree.map(lambda leaf: leaf_sharding(mesh, leaf.shape), tree)


def check_fsdp(mesh: Mesh, params: Any) -> None:
  """An fsdp axis that divides nothing would silently shard nothing."""
  size = mesh.shape['fsdp']
  dims = [d for leaf in jax.tree.leaves(params) for d in leaf.shape]
  if size > 1 and not any(d % size == 0 for d in dims):
    raise errors.ConfigError(
      f'mesh.fsdp={size} divides no dimension of any parameter (largest {max(dims)}); lower it'
    )


def put_batches(mesh: Mesh, batches: Any) -> Any:
  """Host arrays [updates, rows, ...] to arrays with their rows over the mesh.

  Every process holds the whole batch, a function of (seed, step), and passes on its own rows.
  """
  sharding = batches_sharding(mesh)
  if jax.process_count() == 1:
    return jax.device_put(batches, sharding)
  return jax.tree.map(
    lambda a: jax.make_array_from_callback(a.shape, sharding, lambda index: a[index]), batches
  )


def put_like(shardings: Any, tree: Any) -> Any:
  """Host or device arrays to the given shardings, in buffers of their own."""
  if jax.process_count() == 1:
    return jax.device_put(tree, shardings, may_alias=False)
  return jax.tree.map(
    lambda a, s: jax.make_array_from_callback(np.shape(a), s, lambda i: np.asarray(a)[i]),
    tree,
    shardings,
  )
