"""Builds the mesh of devices; sets up simulated CPU devices and the cache of compiled programs."""

import contextlib
import math
import os
import stat
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from gdistill import errors


def make_cpu_devices(count: int) -> None:
  """Makes JAX split the CPU into `count` devices; must be called before JAX creates its devices.

  XLA runs a small convolution on one core of a device, so the use of two cores takes two devices.
  `count` comes from the run's config and not from the machine, because `count` changes the last
  bits of every result.
  """
  # If JAX already has devices, JAX raises RuntimeError, and the number of devices stays unchanged.
  with contextlib.suppress(RuntimeError):
    jax.config.update('jax_num_cpu_devices', count)


def use_compile_cache() -> None:
  """Makes JAX keep compiled programs in ~/.cache/gdistill/xla.

  The environment variable JAX_COMPILATION_CACHE_DIR names another folder; '' turns the cache off.
  JAX keeps no cache if this process cannot write to the home folder.
  """
  check_compile_cache()
  if 'JAX_COMPILATION_CACHE_DIR' in os.environ:
    return
  folder = cache_folder('xla')
  if not folder:
    return
  with contextlib.suppress(OSError):  # without a writable folder, there is no cache
    os.makedirs(folder, mode=0o700, exist_ok=True)
    if os.stat(folder).st_uid == os.getuid() and os.access(folder, os.W_OK):
      jax.config.update('jax_compilation_cache_dir', folder)
      check_compile_cache()


def cache_folder(name: str) -> str:
  """Returns the folder ~/.cache/gdistill/`name`, or '' without a home folder; it may not exist."""
  base = os.environ.get('XDG_CACHE_HOME') or os.path.join(os.path.expanduser('~'), '.cache')
  # Without a home folder, expanduser returns '~' unchanged.
  return os.path.join(base, 'gdistill', name) if os.path.isabs(base) else ''


def check_compile_cache() -> None:
  """Raises ConfigError if everyone can write to the compile cache, from which JAX runs programs."""
  folder = os.environ.get('JAX_COMPILATION_CACHE_DIR') or jax.config.jax_compilation_cache_dir
  if folder and '://' not in folder and os.path.isdir(folder):
    mode = os.stat(folder).st_mode
    if mode & stat.S_IWOTH:
      raise errors.ConfigError(
        f'JAX_COMPILATION_CACHE_DIR={folder} is writable by everyone; run: chmod 0700 {folder}'
      )


AXES = ('slice', 'data', 'fsdp')  # axes of every mesh, from the slowest connection to the fastest


def make_mesh(
  data: int, fsdp: int, slices: int = 1, devices: int | Sequence[Any] | None = None
) -> Mesh | AbstractMesh:
  """Returns the mesh (slice, data, fsdp) of all devices; size -1 takes a slice's remaining devices.

  Slices of a pod are connected only by the slow data-centre network, which only the mesh axis
  'slice' crosses. `devices` may be devices to compile for, which are not here. If it is a number,
  `make_mesh` returns an abstract mesh of so many devices, so that a run can be planned without the
  devices. Raises ConfigError unless the product of the sizes is the number of devices.
  """
  abstract = isinstance(devices, int)
  found = jax.devices() if devices is None else devices
  count = devices if abstract else len(found)
  if count % slices:
    raise errors.ConfigError(
      f'mesh.slices={slices} must divide the number of devices, {count}; change mesh.slices'
    )
  sizes = {'data': data, 'fsdp': fsdp}
  known = int(np.prod([s for s in sizes.values() if s != -1]))
  sizes = {k: count // slices // known if s == -1 else s for k, s in sizes.items()}
  shape = (slices, sizes['data'], sizes['fsdp'])
  if np.prod(shape) != count:
    times = f'mesh.slices={slices} x ' if slices > 1 else ''
    raise errors.ConfigError(
      f'{times}mesh.data={data} x mesh.fsdp={fsdp} must equal the number of devices, {count}; '
      'set mesh.data or mesh.fsdp to -1'
    )
  kinds = (AxisType.Auto,) * 3
  if abstract:
    return AbstractMesh(shape, AXES, axis_types=kinds)
  from jax.experimental import mesh_utils

  there = len({getattr(d, 'slice_index', 0) for d in found})
  try:
    # Physical axes may be split, because a mesh axis of size 2 on a 4x4 torus takes only half of a
    # physical axis.
    if slices > 1 and there == slices:
      grid = mesh_utils.create_hybrid_device_mesh(
        (1, *shape[1:]), (slices, 1, 1), found, allow_split_physical_axes=True
      )
    else:
      grid = mesh_utils.create_device_mesh(shape, found, allow_split_physical_axes=True)
  except (NotImplementedError, ValueError, AssertionError) as e:
    raise errors.ConfigError(
      f'mesh.slices={slices}, mesh.data={data}, mesh.fsdp={fsdp} do not fit the '
      f'{count} devices in {there} slices: {errors.brief(e)}; change these keys'
    ) from e
  return Mesh(grid, AXES, axis_types=kinds)


def is_cpu(mesh: Mesh) -> bool:
  """Tells whether the devices of the mesh are a CPU's; they may be devices of another machine."""
  return mesh.devices.flat[0].platform == 'cpu'


def check_batch(name: str, batch_size: int, accumulation: int, mesh: Mesh) -> None:
  """Raises ConfigError unless each microbatch splits evenly over the devices of the mesh."""
  if batch_size % (accumulation * mesh.size):
    raise errors.ConfigError(
      f'{name}.batch_size={batch_size} must be divisible by {mesh.size} devices x '
      f'{name}.accumulation={accumulation}; change {name}.batch_size'
    )


def over_local_devices(
  batch_size: int, devices: Sequence[Any] | None = None
) -> tuple[NamedSharding, NamedSharding]:
  """Returns shardings on this process's devices: `whole` for parameters and `rows` for batches.

  The shardings `whole` and `rows` use gcd(batch_size, number of this process's devices) devices:
  `whole` puts a copy on each of these devices, and `rows` splits a batch evenly over these devices.
  `devices` are other devices than those of this process, to compile for.
  """
  devices = jax.local_devices() if devices is None else devices
  count = math.gcd(batch_size, len(devices))
  mesh = Mesh(np.array(devices[:count]), ('data',))
  return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec('data'))


def by_rows(function: Callable, mesh: Mesh, split: Sequence[bool]) -> Callable:
  """Returns `function`, with each device of a mesh (data,) computing its own rows of a batch.

  `split` tells for each argument whether it has a row for each example, which the devices share;
  the other arguments are on every device. All results have a row for each example. Without
  `by_rows`, XLA would have to partition the function, and XLA cannot partition a Pallas kernel.
  """
  if mesh.size == 1:
    return function
  everywhere, rows = PartitionSpec(), PartitionSpec('data')
  return jax.shard_map(
    function, mesh=mesh, in_specs=tuple(rows if s else everywhere for s in split), out_specs=rows,
    check_vma=False,
  )  # fmt: skip
