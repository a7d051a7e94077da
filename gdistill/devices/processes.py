"""Several processes as one run: how they find each other, agree, and wait."""

import glob
import importlib.util
import os
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from gdistill import errors

HEARTBEAT, _STARTING = 20, 300  # seconds until a dead process is noticed, a late one given up


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
