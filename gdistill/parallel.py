"""Devices: the mesh, the one sharding rule, multi-process start, host batches to global arrays."""

import contextlib
import glob
import importlib.util
import math
import os
import re
import stat
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from gdistill import errors

AXES = ('slice', 'data', 'fsdp')
HEARTBEAT, _STARTING = 20, 300  # seconds until a dead process is noticed, a late one given up
# Leaves below so many elements are not worth a message each.
_SMALL = 2**16


def make_cpu_devices(count: int) -> None:
  """Makes `count` devices of a CPU; must come before anything asks for a device.

  XLA runs small convolutions on one core whatever it is given, so two devices are what makes two
  cores work. The number is the run's and not the machine's: it decides the last bits.
  """
  with contextlib.suppress(RuntimeError):  # devices are made already: a process keeps what it has
    jax.config.update('jax_num_cpu_devices', count)


def start(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
  """Joins the other processes of a run: as the flags say, or else as the cluster does.

  --num_processes=1 alone keeps a process by itself whatever the cluster says.
  """
  given = {'coordinator': coordinator, 'num_processes': num_processes, 'process_id': process_id}
  missing = [name for name, value in given.items() if value is None]
  if num_processes == 1 and len(missing) == 2:
    return
  if len(missing) == len(given):
    where = cluster(os.environ)
    if where:
      _join(f'the processes that {where} tells of', {})
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
  flags = {
    'coordinator_address': coordinator, 'num_processes': num_processes, 'process_id': process_id,
    'cluster_detection_method': 'deactivate',
  }  # fmt: skip
  if host in ('localhost', '127.0.0.1', '[::1]'):
    flags['coordinator_bind_address'] = coordinator  # nobody else's network hears of it
  _join(f'--coordinator={coordinator!r}', flags)


def cluster(env: Mapping[str, str]) -> str | None:
  """Which cluster has started this process as one of several, by what it leaves in `env`.

  JAX finds the other processes by itself there, and needs only be told to.
  """

  def count(name):
    return int(env[name]) if env.get(name, '').isdigit() else 1

  platforms = env.get('JAX_PLATFORMS') or 'tpu'
  chips = glob.glob('/dev/accel[0-9]*') or glob.glob('/dev/vfio/[0-9]*')
  if 'tpu' in platforms and 'TPU_WORKER_HOSTNAMES' in env:
    return 'the TPU (TPU_WORKER_HOSTNAMES)'
  if 'tpu' in platforms and chips and importlib.util.find_spec('libtpu'):
    return 'the TPU (its metadata)'
  # Only a step that srun starts has the node list: a batch script by itself is one process.
  if count('SLURM_NTASKS') > 1 and {'SLURM_STEP_NODELIST', 'SLURM_PROCID'} <= env.keys():
    return 'Slurm (SLURM_NTASKS)'
  by_hand = (
    'give --coordinator, --num_processes and --process_id, or --num_processes=1 for one alone'
  )
  if count('OMPI_COMM_WORLD_SIZE') > 1:
    if 'OMPI_MCA_orte_hnp_uri' not in env:
      raise errors.ConfigError(
        f'OMPI_COMM_WORLD_SIZE={env["OMPI_COMM_WORLD_SIZE"]}, but without OMPI_MCA_orte_hnp_uri, '
        f'which Open MPI 4 sets, processes do not find each other; {by_hand}'
      )
    return 'MPI (OMPI_COMM_WORLD_SIZE)'
  if {'KUBERNETES_SERVICE_HOST', 'JOB_COMPLETION_INDEX'} <= env.keys():
    if not importlib.util.find_spec('kubernetes'):
      raise errors.ConfigError(
        f'JOB_COMPLETION_INDEX={env["JOB_COMPLETION_INDEX"]}: processes of a Kubernetes job find '
        f'each other through the package kubernetes; pip install kubernetes, or {by_hand}'
      )
    return 'Kubernetes (JOB_COMPLETION_INDEX)'
  return None


def _join(what: str, flags: Mapping[str, Any]) -> None:
  try:
    jax.distributed.initialize(
      heartbeat_timeout_seconds=HEARTBEAT, initialization_timeout=_STARTING, **flags
    )
  except Exception as e:  # grpc and JAX each have their own
    reason = errors.brief(e)
    raise errors.PeerError(
      f'{what} could not be joined: {reason}; start all processes again, within {_STARTING} s of '
      'each other, or one alone with --num_processes=1'
    ) from e


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


def from_first(values: np.ndarray) -> np.ndarray:
  """Process 0's array; every process must ask, with one of that shape and kind."""
  if jax.process_count() == 1:
    return values
  from jax.experimental import multihost_utils

  return np.asarray(multihost_utils.broadcast_one_to_all(values))


def of_first(value: str) -> str:
  """Process 0's string of at most 64 bytes; every process must ask."""
  mine = np.frombuffer(value.encode().ljust(64), np.uint8)
  return from_first(mine).tobytes().decode().rstrip()


def from_everyone(flag: bool) -> np.ndarray:
  """[processes]: the flag of each; every process must ask."""
  if jax.process_count() == 1:
    return np.array([flag])
  from jax.experimental import multihost_utils

  return np.asarray(multihost_utils.process_allgather(np.array(flag)))


def any_process(flag: bool) -> bool:
  """Whether the flag is up in some process; every process must ask."""
  return bool(np.any(from_everyone(flag)))


def barrier(name: str, hours: float | None = None) -> None:
  """Waits until every process is here.

  With `hours`, for so long and once a name, and PeerError says who did not come: between hosts,
  since a CPU's collectives give up after half an hour.
  """
  if jax.process_count() > 1 and hours is None:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(name)
  elif jax.process_count() > 1:
    import orbax.checkpoint as ocp

    everyone = set(range(jax.process_count()))
    try:
      ocp.multihost.sync_global_processes(name, timeout=int(3600 * hours), processes=everyone)
    except Exception as e:  # jaxlib's own, which says who is missing in words
      # After these words '/job:jax_worker/replica:0/task:1', or by another jaxlib '1', a line each.
      late = '\n'.join(str(e).partition('timed out task names:')[2].split())
      missing = sorted({int(n) for n in re.findall(r'(?:^|task:)(\d+)$', late, re.MULTILINE)})
      who = f'processes {missing} did not come' if missing else errors.brief(e)
      raise errors.PeerError(
        f'{name}: {who} within {hours:g} h of process {jax.process_index()}; start all again'
      ) from e


def use_compile_cache() -> None:
  """Programs compiled once are kept in ~/.cache/gdistill/xla, unless JAX is told of another place.

  JAX_COMPILATION_CACHE_DIR names that place; '' keeps nothing.
  """
  check_compile_cache()
  if 'JAX_COMPILATION_CACHE_DIR' in os.environ:
    return
  base = os.environ.get('XDG_CACHE_HOME') or os.path.join(os.path.expanduser('~'), '.cache')
  folder = os.path.join(base, 'gdistill', 'xla')
  with contextlib.suppress(OSError):  # no home, or one that cannot be written: then without
    if not os.path.isabs(folder):
      return  # no home at all: '~' stayed as it is
    os.makedirs(folder, mode=0o700, exist_ok=True)
    if os.stat(folder).st_uid == os.getuid() and os.access(folder, os.W_OK):
      jax.config.update('jax_compilation_cache_dir', folder)
      check_compile_cache()


def check_compile_cache() -> None:
  """A compile cache that anyone may write to is a way to run anyone's code."""
  folder = os.environ.get('JAX_COMPILATION_CACHE_DIR') or jax.config.jax_compilation_cache_dir
  if folder and '://' not in folder and os.path.isdir(folder):
    mode = os.stat(folder).st_mode
    if mode & stat.S_IWOTH:
      raise errors.ConfigError(
        f'JAX_COMPILATION_CACHE_DIR={folder} is writable by everyone; chmod 0700 it'
      )


def make_mesh(
  data: int, fsdp: int, slices: int = 1, devices: int | None = None
) -> Mesh | AbstractMesh:
  """Axes slice, data and fsdp over all devices; -1 takes what is left of a slice.

  The slice axis is the slow one, across data-centre network. With `devices`, a mesh of so many
  that need not exist: for plans.
  """
  count = jax.device_count() if devices is None else devices
  if count % slices:
    raise errors.ConfigError(f'mesh.slices={slices} must divide the {count} devices there are')
  sizes = {'data': data, 'fsdp': fsdp}
  known = int(np.prod([s for s in sizes.values() if s != -1]))
  sizes = {k: count // slices // known if s == -1 else s for k, s in sizes.items()}
  shape = (slices, sizes['data'], sizes['fsdp'])
  if np.prod(shape) != count:
    times = f'mesh.slices={slices} x ' if slices > 1 else ''
    raise errors.ConfigError(
      f'{times}mesh.data={data} x mesh.fsdp={fsdp} must make the {count} devices there are; '
      'set one of data and fsdp to -1'
    )
  kinds = (AxisType.Auto,) * 3
  if devices is not None:
    return AbstractMesh(shape, AXES, axis_types=kinds)
  from jax.experimental import mesh_utils

  found = jax.devices()
  there = len({getattr(d, 'slice_index', 0) for d in found})
  try:
    # Split: an axis of 2 on a 4x4 torus takes a part of one of its rings.
    if slices > 1 and there == slices:
      grid = mesh_utils.create_hybrid_device_mesh(
        (1, *shape[1:]), (slices, 1, 1), found, allow_split_physical_axes=True
      )
    else:
      grid = mesh_utils.create_device_mesh(shape, found, allow_split_physical_axes=True)
  except (NotImplementedError, ValueError, AssertionError) as e:
    raise errors.ConfigError(
      f'mesh.slices={slices}, mesh.data={data}, mesh.fsdp={fsdp} cannot be laid on these '
      f'{count} devices in {there} slices: {errors.brief(e)}; choose other sizes'
    ) from e
  return Mesh(grid, AXES, axis_types=kinds)


def check_batch(name: str, batch_size: int, accumulation: int, mesh: Mesh) -> None:
  """Each microbatch must split evenly over the devices."""
  if batch_size % (accumulation * mesh.size):
    raise errors.ConfigError(
      f'{name}.batch_size={batch_size} must be divisible by {mesh.size} devices x '
      f'{name}.accumulation={accumulation}'
    )


def over_local_devices(batch_size: int) -> tuple[NamedSharding, NamedSharding]:
  """(whole, rows): on each of this process's devices, and split over as many as divide a batch."""
  devices = jax.local_devices()
  count = math.gcd(batch_size, len(devices))
  mesh = Mesh(np.array(devices[:count]), ('data',))
  return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec('data'))


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def batches_sharding(mesh: Mesh) -> NamedSharding:
  """[updates, rows, ...]: rows over every device."""
  return NamedSharding(mesh, PartitionSpec(None, AXES))


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
  left = [axis for axis in AXES if mesh.shape[axis] > 1 and not _splits(spec, axis)]
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
      holders = np.prod([mesh.shape[axis] for axis in AXES if _splits(spec, axis)])
      square *= holders / mesh.size  # as many devices hold the same part
    found.append(square)
  own = jnp.stack(found)
  if not any(split):
    return own
  # One message for all leaves; those that are whole everywhere stay as they are.
  return jnp.where(np.array(split), jax.lax.psum(own, AXES), own)


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
