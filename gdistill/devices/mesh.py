"""The mesh of devices, its axes and its checks, and the cache of compiled programs."""

import contextlib
import math
import os
import stat

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from gdistill import errors

AXES = ('slice', 'data', 'fsdp')


def make_cpu_devices(count: int) -> None:
  """Makes `count` devices of a CPU; must come before anything asks for a device.

  XLA runs small convolutions on one core whatever it is given, so two devices are what makes two
  cores work. The number is the run's and not the machine's: it decides the last bits.
  """
  with contextlib.suppress(RuntimeError):  # devices are made already: a process keeps what it has
    jax.config.update('jax_num_cpu_devices', count)


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
