"""Connects the processes of a run, compares values between processes, and waits for processes."""

import glob
import importlib.util
import os
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from gdistill import errors


def start(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
  """Connects this process to the other processes of the run, found by the flags or by `cluster`.

  If no flag is given and `cluster` finds no cluster, the run has this process alone. With
  --num_processes=1 and no other flag, the run always has this process alone. Raises ConfigError if
  flags are missing or wrong, and PeerError if the processes cannot be connected.
  """
  given = {'coordinator': coordinator, 'num_processes': num_processes, 'process_id': process_id}
  missing = [name for name, value in given.items() if value is None]
  if num_processes == 1 and len(missing) == 2:
    return
  if len(missing) == len(given):
    where = cluster(os.environ)
    if where:
      _join(f'the processes reported by {where}', {})
    return
  if missing:
    name = next(n for n in given if n not in missing)
    raise errors.ConfigError(
      f'--{name}={given[name]!r} also needs --{" and --".join(missing)}; give all three flags'
    )
  if num_processes < 1 or not 0 <= process_id < num_processes:
    raise errors.ConfigError(
      f'--process_id={process_id} must be at least 0 and below --num_processes={num_processes}'
    )
  host, _, port = coordinator.rpartition(':')
  if not host or not port.isdigit():
    raise errors.ConfigError(
      f'--coordinator={coordinator!r} must be HOST:PORT of process 0, such as 10.0.0.2:1234'
    )
  flags = {
    'coordinator_address': coordinator, 'num_processes': num_processes, 'process_id': process_id,
    'cluster_detection_method': 'deactivate',
  }  # fmt: skip
  if host in ('localhost', '127.0.0.1', '[::1]'):
    flags['coordinator_bind_address'] = coordinator  # process 0 accepts only local connections
  _join(f'--coordinator={coordinator!r}', flags)


def cluster(env: Mapping[str, str]) -> str | None:
  """Returns the name of the cluster that the environment `env` shows, or None if there is none.

  In a cluster whose name is returned, jax.distributed.initialize finds the other processes without
  arguments. Raises ConfigError if `env` shows a cluster in which processes cannot find each other.
  """

  def count(name):
    return int(env[name]) if env.get(name, '').isdigit() else 1

  platforms = env.get('JAX_PLATFORMS') or 'tpu'
  chips = glob.glob('/dev/accel[0-9]*') or glob.glob('/dev/vfio/[0-9]*')
  if 'tpu' in platforms and 'TPU_WORKER_HOSTNAMES' in env:
    return 'the TPU (TPU_WORKER_HOSTNAMES)'
  if 'tpu' in platforms and chips and importlib.util.find_spec('libtpu'):
    return 'the TPU (its metadata)'
  # SLURM_NTASKS alone does not show several processes, because a batch script outside srun also
  # sees SLURM_NTASKS, but is one process. Only srun sets SLURM_STEP_NODELIST.
  if count('SLURM_NTASKS') > 1 and {'SLURM_STEP_NODELIST', 'SLURM_PROCID'} <= env.keys():
    return 'Slurm (SLURM_NTASKS)'
  by_hand = (
    'give --coordinator, --num_processes and --process_id, or --num_processes=1 for one process'
  )
  if count('OMPI_COMM_WORLD_SIZE') > 1:
    if 'OMPI_MCA_orte_hnp_uri' not in env:
      raise errors.ConfigError(
        f'OMPI_COMM_WORLD_SIZE={env["OMPI_COMM_WORLD_SIZE"]}: processes find each other through '
        f'OMPI_MCA_orte_hnp_uri, which Open MPI 4 sets and which is missing here; {by_hand}'
      )
    return 'MPI (OMPI_COMM_WORLD_SIZE)'
  if {'KUBERNETES_SERVICE_HOST', 'JOB_COMPLETION_INDEX'} <= env.keys():
    if not importlib.util.find_spec('kubernetes'):
      raise errors.ConfigError(
        f'JOB_COMPLETION_INDEX={env["JOB_COMPLETION_INDEX"]}: processes of a Kubernetes job find '
        'each other through the package kubernetes, which is not installed; '
        f'pip install kubernetes, or {by_hand}'
      )
    return 'Kubernetes (JOB_COMPLETION_INDEX)'
  return None


HEARTBEAT = 20  # seconds until the other processes notice that a process has died
_STARTING = 300  # seconds that a starting process waits for the other processes


def _join(what: str, flags: Mapping[str, Any]) -> None:
  try:
    jax.distributed.initialize(
      heartbeat_timeout_seconds=HEARTBEAT, initialization_timeout=_STARTING, **flags
    )
  except Exception as e:  # grpc and JAX raise exceptions of many classes
    reason = errors.brief(e)
    raise errors.PeerError(
      f'{what} could not be joined: {reason}; start all processes again, within {_STARTING} s of '
      'each other, or one process alone with --num_processes=1'
    ) from e


def agree(name: str, value: str) -> None:
  """Raises ConfigError unless the first 32 bytes of `value` are equal in all processes."""
  if jax.process_count() == 1:
    return
  from jax.experimental import multihost_utils

  mine = np.frombuffer(value.encode()[:32].ljust(32), np.uint8)
  everyone = np.asarray(multihost_utils.process_allgather(mine))
  odd = [i for i, row in enumerate(everyone) if not np.array_equal(row, everyone[0])]
  if odd:
    raise errors.ConfigError(
      f'{name}={value!r} differs between processes: processes {odd} have another value than '
      'process 0; start every process with the same command'
    )


def from_first(values: np.ndarray) -> np.ndarray:
  """Returns process 0's array; all processes must call `from_first` with equal shape and dtype."""
  if jax.process_count() == 1:
    return values
  from jax.experimental import multihost_utils

  return np.asarray(multihost_utils.broadcast_one_to_all(values))


def of_first(value: str) -> str:
  """Returns process 0's string, of at most 64 bytes; every process must call `of_first`."""
  mine = np.frombuffer(value.encode().ljust(64), np.uint8)
  return from_first(mine).tobytes().decode().rstrip()


def from_everyone(flag: bool) -> np.ndarray:
  """Returns bool [processes], the flag of each process; every process must call `from_everyone`."""
  if jax.process_count() == 1:
    return np.array([flag])
  from jax.experimental import multihost_utils

  return np.asarray(multihost_utils.process_allgather(np.array(flag)))


def any_process(flag: bool) -> bool:
  """Returns whether the flag is true in any process; every process must call `any_process`."""
  return bool(np.any(from_everyone(flag)))


def barrier(name: str, hours: float | None = None) -> None:
  """Waits until every process has called `barrier` with this name.

  With `hours`, waits at most `hours` hours, then raises PeerError that names the missing processes;
  each `name` can be used only once with `hours`. A barrier with `hours` uses no collective
  operation of the devices, because collective operations on CPU give up after half an hour.
  """
  if jax.process_count() > 1 and hours is None:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(name)
  elif jax.process_count() > 1:
    import orbax.checkpoint as ocp

    everyone = set(range(jax.process_count()))
    try:
      ocp.multihost.sync_global_processes(name, timeout=int(3600 * hours), processes=everyone)
    except Exception as e:
      # The message of jaxlib's error lists the missing processes, one on each line, such as
      # '/job:jax_worker/replica:0/task:1', or '1' in other versions of jaxlib.
      late = '\n'.join(str(e).partition('timed out task names:')[2].split())
      missing = sorted({int(n) for n in re.findall(r'(?:^|task:)(\d+)$', late, re.MULTILINE)})
      limit = f'within {hours:g} h of process {jax.process_index()}'
      reason = f'processes {missing} did not come {limit}' if missing else errors.brief(e)
      raise errors.PeerError(f'{name}: {reason}; start all processes again') from e
