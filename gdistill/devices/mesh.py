"""The mesh of devices with axes and checks, CPU devices, and the cache of compiled programs."""

import contextlib
import math
import os
import stat

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from gdistill import errors


def make_cpu_devices(count: int) -> None:
  """Makes JAX show the CPU as `count` devices; must be called before JAX creates its devices.

  XLA runs a small convolution on one core, so two cores need two devices. `count` comes from the
  run's config and not from the machine, because `count` changes the last bits of every result.
  """
  with contextlib.suppress(RuntimeError):  # JAX already has devices: the number of devices stays
    jax.config.update('jax_num_cpu_devices', count)


def use_compile_cache() -> None:
  """Makes JAX keep compiled programs in ~/.cache/gdistill/xla.

  The environment variable JAX_COMPILATION_CACHE_DIR names another folder; '' turns the cache off.
  JAX keeps no cache if this process cannot write to the home folder.
  """
  check_compile_cache()
  if 'JAX_COMPILATION_CACHE_DIR' in os.environ:
    return
  base = os.environ.get('XDG_CACHE_HOME') or os.path.join(os.path.expanduser('~'), '.cache')
  folder = os.path.join(base, 'gdistill', 'xla')
  with contextlib.suppress(OSError):  # the folder cannot be written: run without a cache
    if not os.path.isabs(folder):
      return  # there is no home folder, so expanduser returned '~' unchanged
    os.makedirs(folder, mode=0o700, exist_ok=True)
    if os.stat(folder).st_uid == os.getuid() and os.access(folder, os.W_OK):
      jax.config.update('jax_compilation_cache_dir', folder)
      check_compile_cache()


def check_compile_cache() -> None:
  """Raises ConfigError if every user may write to the compile cache, whose programs JAX runs."""
  folder = os.environ.get('JAX_COMPILATION_CACHE_DIR') or jax.config.jax_compilation_cache_dir
  if folder and '://' not in folder and os.path.isdir(folder):
    mode = os.stat(folder).st_mode
    if mode & stat.S_IWOTH:
      raise errors.ConfigError(
        f'JAX_COMPILATION_CACHE_DIR={folder} is writable by everyone; run: chmod 0700 {folder}'
      )


AXES = ('slice', 'data', 'fsdp')  # the axes of every mesh, the slowest connection first


def make_mesh(
  data: int, fsdp: int, slices: int = 1, devices: int | None = None
) -> Mesh | AbstractMesh:
  """Returns the mesh (slice, data, fsdp) over all devices; a size of -1 fills up a slice.

  Slices of a pod are connected by the slow data-centre network; only the axis 'slice' crosses that
  network. With `devices`, returns an abstract mesh of that many devices, which need not exist,
  for plans. ConfigError if the sizes do not multiply to the number of devices.
  """
  count = jax.device_count() if devices is None else devices
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
  if devices is not None:
    return AbstractMesh(shape, AXES, axis_types=kinds)
  from jax.experimental import mesh_utils

  found = jax.devices()
  there = len({getattr(d, 'slice_index', 0) for d in found})
  try:
    # Physical axes may be split, because an axis of 2 on a 4x4 torus takes a part of one ring.
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


def check_batch(name: str, batch_size: int, accumulation: int, mesh: Mesh) -> None:
  """Raises ConfigError unless each microbatch splits evenly over the devices of the mesh."""
  if batch_size % (accumulation * mesh.size):
    raise errors.ConfigError(
      f'{name}.batch_size={batch_size} must be divisible by {mesh.size} devices x '
      f'{name}.accumulation={accumulation}; change {name}.batch_size'
    )


def over_local_devices(batch_size: int) -> tuple[NamedSharding, NamedSharding]:
  """Returns (whole, rows): shardings for parameters and batches on this process's devices.

  Both shardings use gcd(batch_size, number of devices) devices: `whole` puts a copy on each device
  used, and `rows` splits a batch evenly over the devices used.
  """
  devices = jax.local_devices()
  count = math.gcd(batch_size, len(devices))
  mesh = Mesh(np.array(devices[:count]), ('data',))
  return NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec('data'))
