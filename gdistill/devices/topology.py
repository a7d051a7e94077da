"""Chips that are not here: names of TPU slices and GPUs, their peaks, and a mesh to compile for.

A program that is compiled for such a mesh is the program that the chips would run, but it cannot
be run here. TPUs need the package `libtpu` that belongs to the installed JAX (extra `tpu`).
"""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from typing import Any

import jax

from gdistill import errors


@dataclasses.dataclass(frozen=True)
class Chip:
  """Peaks of one JAX device: bfloat16 FLOP/s, bytes of memory, and its bytes per second.

  `dimensions` is the number of axes of the network between chips; 0 for a GPU. `per_chip` is the
  number of JAX devices on a chip.
  """

  flops: float
  memory: float
  bandwidth: float
  dimensions: int
  per_chip: int = 1


# Peaks of a chip, halved for tpu7x, which shows two devices a chip. Sources: the pages "TPU v4",
# "TPU v5e", "TPU v5p", "TPU v6e" and "TPU7x" of Google Cloud's TPU documentation; NVIDIA's data
# sheets of H100 SXM and H200 SXM (dense bfloat16).
CHIPS = {
  'v4': Chip(275e12, 32 * 2**30, 1228e9, 3),
  'v5e': Chip(197e12, 16 * 2**30, 819e9, 2),
  'v5p': Chip(459e12, 95 * 2**30, 2765e9, 3),
  'v6e': Chip(918e12, 32 * 2**30, 1640e9, 2),
  'tpu7x': Chip(2307e12 / 2, 192 * 2**30 / 2, 7380e9 / 2, 3, per_chip=2),
  'h100': Chip(989e12, 80e9, 3350e9, 0),
  'h200': Chip(989e12, 141e9, 4800e9, 0),
}
# What gcloud calls a slice -> (generation, N for each chip: N of v4 and v5p counts TensorCores).
_CLOUD = {'v4': ('v4', 2), 'v5p': ('v5p', 2), 'v5litepod': ('v5e', 1), 'v6e': ('v6e', 1)}
_FORM = (
  'write v4:4x4x8, v5e:8x16, v5p:4x4x8, v6e:8x16, tpu7x:2x2x1, h100:8 or h200:8, '
  'a name of gcloud such as v5litepod-128, or several slices as 2x v5e:8x16'
)


@dataclasses.dataclass(frozen=True)
class Topology:
  """Slices of chips: `kind` is a key of CHIPS, `shape` the chips of a slice along each axis."""

  kind: str
  shape: tuple[int, ...]
  slices: int = 1

  @property
  def chip(self) -> Chip:
    return CHIPS[self.kind]

  @property
  def devices(self) -> int:
    """The number of JAX devices in all slices."""
    return math.prod(self.shape) * self.chip.per_chip * self.slices

  @property
  def is_tpu(self) -> bool:
    return bool(self.chip.dimensions)

  def __str__(self) -> str:
    one = f'{self.kind}:{"x".join(map(str, self.shape))}'
    return one if self.slices == 1 else f'{self.slices}x {one}'


def parse(name: str) -> Topology:
  """Returns the topology of a name such as 'v4:4x4x8', '2x v5e:8x16', 'v5litepod-128' or 'h200:8'.

  Raises ConfigError, which says what may be meant.
  """
  text = name.strip().lower()
  found = re.fullmatch(r'(?:([1-9]\d{0,3})\s*x\s+)?([a-z0-9]+)(?::([\dx]+)|-([1-9]\d{0,5}))', text)
  if not found:
    raise errors.ConfigError(f'--topology={name} is not a topology; {_FORM}')
  slices, kind, shape, count = found.groups()
  slices = int(slices or 1)
  if count:
    return Topology(*_of_cloud(name, kind, int(count)), slices)
  if kind not in CHIPS:
    known = {'v5litepod': 'v5e', 'v5lite': 'v5e', 'v7': 'tpu7x', 'v7x': 'tpu7x', '7x': 'tpu7x'}
    meant = f', perhaps {known[kind]}:{shape}' if kind in known else ''
    raise errors.ConfigError(
      f'--topology={name}: {kind} is none of {", ".join(CHIPS)}{meant}; {_FORM}'
    )
  chip = CHIPS[kind]
  sizes = shape.split('x')
  axes = chip.dimensions or 1
  if len(sizes) != axes or not all(re.fullmatch(r'[1-9]\d{0,3}', s) for s in sizes):
    like = {0: '8', 2: '2x4', 3: '2x2x1'}[chip.dimensions]
    raise errors.ConfigError(
      f'--topology={name}: {kind} is named by {axes} numbers of chips, as in {kind}:{like}'
    )
  if slices > 1 and not chip.dimensions:
    raise errors.ConfigError(f'--topology={name}: GPUs have no slices; give one number of GPUs')
  return Topology(kind, tuple(map(int, sizes)), slices)


def _of_cloud(name: str, kind: str, count: int) -> tuple[str, tuple[int, ...]]:
  """Returns (kind, shape) of what gcloud calls `kind`-`count`."""
  if kind not in _CLOUD:
    raise errors.ConfigError(
      f'--topology={name}: gcloud knows {", ".join(f"{k}-N" for k in _CLOUD)}; {_FORM}'
    )
  own, per_chip = _CLOUD[kind]
  chips, odd = divmod(count, per_chip)
  shape = None if odd else _shape(chips, CHIPS[own].dimensions)
  if shape is None:
    raise errors.ConfigError(
      f'--topology={name}: no slice of {own} has {count / per_chip:g} chips; name its axes, as in '
      f'{own}:{"x".join("2" * CHIPS[own].dimensions)}'
    )
  return own, shape


def _shape(chips: int, dimensions: int) -> tuple[int, ...] | None:
  """Returns the axes of the standard slice of a power of two chips, or None.

  A slice of 4 chips is one host, 2x2 or 2x2x1. Larger slices double their shortest axis: the last
  one first, as in 2x4, 4x4, 4x8; 2x2x2, 2x2x4, 2x4x4, 4x4x4, 4x4x8.
  """
  if chips & (chips - 1) or chips < 1:
    return None
  if dimensions == 2:
    short = 2 ** (int(math.log2(chips)) // 2)
    return (short, chips // short) if chips <= 256 else None
  if chips < 4:
    return (1, 1, 1) if chips == 1 else None
  if chips == 4:
    return (2, 2, 1)
  exponents = [e for e in (int(math.log2(chips)) // 3,) for _ in range(3)]
  for i in range(int(math.log2(chips)) % 3):
    exponents[2 - i] += 1
  return tuple(2**e for e in exponents)


def check_installed(topology: Topology) -> None:
  """Raises ConfigError if the package that compiles for these chips is not installed."""
  if topology.is_tpu and importlib.util.find_spec('libtpu') is None:
    raise errors.ConfigError(
      f'--topology={topology}: libtpu, which compiles for TPUs, is not installed; run: '
      "pip install -e '.[tpu]'"
    )
  plugin = importlib.util.find_spec('jax_plugins') and importlib.util.find_spec(
    'jax_plugins.xla_cuda12'
  )
  if not topology.is_tpu and plugin is None:
    raise errors.ConfigError(
      f'--topology={topology}: the plugin that compiles for NVIDIA GPUs is not installed; run: pip '
      f'install --no-deps jax-cuda12-plugin=={jax.__version__} jax-cuda12-pjrt=={jax.__version__}'
    )


def devices_of(topology: Topology) -> Sequence[Any]:
  """Returns JAX devices that stand for the chips of a topology, to compile for.

  The process must have been started with `environment`. Raises ConfigError if what compiles for
  these chips is not installed, or if there is no such slice.
  """
  from jax.experimental import topologies

  check_installed(topology)
  try:
    if topology.is_tpu:
      return topologies.get_topology_desc(platform='tpu', **tpu_options(topology)).devices
    return topologies.get_topology_desc(
      topology.kind, 'cuda', topology=f'1x1x{topology.shape[0]}', target_config=_target(topology)
    ).devices
  except Exception as e:
    raise errors.ConfigError(f'--topology={topology}: {errors.brief(e)}') from e


def tpu_options(topology: Topology) -> dict:
  """Returns the arguments with which libtpu describes the slices of a TPU topology."""
  options: dict = {'topology_name': str(dataclasses.replace(topology, slices=1))}
  if topology.kind == 'v4':
    options['chip_config_name'] = 'megacore'  # otherwise a v4 chip shows two devices
  if math.prod(topology.shape) == 1:
    options['chips_per_host_bounds'] = (1, 1, 1)
  if topology.slices > 1:
    options['num_slices'] = topology.slices
  return options


def environment(topology: Topology) -> dict[str, str]:
  """Returns environment variables for a process that compiles for chips that are not here.

  libtpu takes a lock, because two processes cannot share a TPU; a process that only compiles
  needs no lock, and without ALLOW_MULTIPLE_LIBTPU_LOAD two plans at once would fail. Raises
  ConfigError on a machine with TPUs, where the lock must stay.
  """
  if not topology.is_tpu:
    # Without a GPU, XLA cannot measure which of several kernels is fastest.
    flags = os.environ.get('XLA_FLAGS', '')
    return {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': f'{flags} --xla_gpu_autotune_level=0'.strip()}
  if os.path.exists('/dev/accel0') or os.path.exists('/dev/vfio/0'):
    raise errors.ConfigError(
      f'--topology={topology}: this machine has TPUs, and to compile for other TPUs beside them '
      'could disturb a run; make the plan on a machine without TPUs'
    )
  return {'JAX_PLATFORMS': 'cpu', 'TPU_SKIP_MDS_QUERY': '1', 'ALLOW_MULTIPLE_LIBTPU_LOAD': '1'}


def _target(topology: Topology) -> str:
  """Returns XLA's description of a GPU that is not here: a GpuTargetConfigProto as text.

  The numbers are those of NVIDIA's data sheets and of compute capability 9.0 in the CUDA C++
  programming guide.
  """
  chip = topology.chip
  name = topology.kind.upper()
  return f"""
    platform_name: "CUDA"
    device_description_str: "NVIDIA {name}"
    dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
    gpu_device_info {{
      name: "NVIDIA {name}" device_vendor: "NVIDIA Corporation"
      cuda_compute_capability {{ major: 9 feature_extension: ACCELERATED_FEATURES }}
      driver_version: "13.0.0" runtime_version: "12.8.0" compile_time_toolkit_version: "12.8.0"
      dnn_version: "9.10.0"
      core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
      threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
      thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
      block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
      registers_per_core_limit: 65536 registers_per_block_limit: 65536
      shared_memory_per_block: 49152 shared_memory_per_core: 233472
      shared_memory_per_block_optin: 232448
      l2_cache_size: 52428800 device_address_bits: 64 ecc_enabled: true
      memory_bandwidth: {int(chip.bandwidth)} device_memory_size: {int(chip.memory)}
      pcie_bandwidth: 64000000000
      device_interconnect_info {{ active_links: 18 }}
    }}
  """
