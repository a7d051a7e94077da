"""Tests of several processes: how they find each other, and what ends them together."""

import contextlib
import importlib.util
import os
import pathlib
import random
import socket
import subprocess
import sys
import time

import pytest
import waits

from gdistill import errors
from gdistill.devices import processes

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize(
  ('env', 'found'),
  [
    ({}, None),
    ({'SLURM_NTASKS': '4', 'SLURM_PROCID': '0'}, None),  # a batch script, outside srun
    ({'SLURM_NTASKS': '4', 'SLURM_PROCID': '0', 'SLURM_STEP_NODELIST': 'n1'}, 'Slurm'),
    ({'SLURM_NTASKS': '1', 'SLURM_PROCID': '0', 'SLURM_STEP_NODELIST': 'n1'}, None),
    ({'OMPI_COMM_WORLD_SIZE': '2', 'OMPI_MCA_orte_hnp_uri': '1.0;tcp://h:1'}, 'MPI'),
    ({'OMPI_COMM_WORLD_SIZE': '1'}, None),
    ({'KUBERNETES_SERVICE_HOST': '10.0.0.1'}, None),  # a pod that belongs to no job
    ({'KUBERNETES_SERVICE_HOST': '10.0.0.1', 'JOB_COMPLETION_INDEX': '1'}, 'Kubernetes'),
    ({'TPU_WORKER_HOSTNAMES': 'a,b', 'KUBERNETES_SERVICE_HOST': '10.0.0.1'}, 'TPU'),
    ({'TPU_WORKER_HOSTNAMES': 'a,b', 'JAX_PLATFORMS': 'cpu'}, None),
    ({'TPU_WORKER_HOSTNAMES': 'a,b', 'JAX_PLATFORMS': ''}, 'TPU'),  # '': JAX chooses the platform
  ],
)
def test_a_cluster_is_known_by_what_it_leaves_in_the_environment(monkeypatch, env, found):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: name == 'kubernetes')
  where = processes.cluster(env)
  assert where is None if found is None else found in where


@pytest.mark.parametrize(
  ('env', 'words'),
  [
    ({'OMPI_COMM_WORLD_SIZE': '2'}, 'OMPI_MCA_orte_hnp_uri, which Open MPI 4 sets'),
    (
      {'KUBERNETES_SERVICE_HOST': '10.0.0.1', 'JOB_COMPLETION_INDEX': '1'},
      'pip install kubernetes, or give --coordinator',
    ),
  ],
)
def test_a_cluster_whose_processes_cannot_find_each_other_is_said_so(monkeypatch, env, words):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(errors.ConfigError, match=words):
    processes.cluster(env)


def test_a_process_can_be_kept_alone(monkeypatch):
  monkeypatch.setattr(processes, 'cluster', lambda env: pytest.fail('it asked the cluster'))
  processes.start(None, 1, None)


@pytest.mark.parametrize(
  ('given', 'words'),
  [
    (('localhost:1', None, None), 'needs --num_processes and --process_id'),
    ((None, 2, None), 'needs --coordinator and --process_id'),
    (('localhost:1', 2, 2), 'must be at least 0 and below'),
    (('localhost', 2, 0), 'must be HOST:PORT'),
  ],
)
def test_half_told_processes_are_refused(given, words):
  with pytest.raises(errors.ConfigError, match=words):
    processes.start(*given)


JOIN = """
import jax
from gdistill.devices import processes

processes.start(None, None, None)
found = jax.experimental.multihost_utils.process_allgather(jax.process_index())
print(jax.process_count(), jax.process_index(), found.tolist())
"""


def free_job():
  """Returns a job id from which JAX computes a free port for the coordinator."""
  while True:
    job = random.randrange(40_000, 100_000)
    with socket.socket() as s, contextlib.suppress(OSError):
      s.bind(('127.0.0.1', 65535 - 4095 + job % 4096))
      return job


@pytest.mark.parametrize(
  'env',
  [
    {
      'SLURM_JOB_ID': '{job}', 'SLURM_STEP_NODELIST': 'localhost', 'SLURM_NTASKS': '2',
      'SLURM_PROCID': '{i}', 'SLURM_LOCALID': '{i}',
    },
    {
      'OMPI_MCA_orte_hnp_uri': '{launcher}.0;tcp://127.0.0.1:34911', 'OMPI_COMM_WORLD_SIZE': '2',
      'OMPI_COMM_WORLD_RANK': '{i}', 'OMPI_COMM_WORLD_LOCAL_RANK': '{i}',
    },
  ],
  ids=['Slurm', 'MPI'],
)  # fmt: skip
def test_two_processes_find_each_other_as_the_cluster_says(env):
  code, job = 'import jax.experimental.multihost_utils\n' + JOIN, free_job()
  filled = lambda value, i: value.format(i=i, job=job, launcher=job * 4096)
  children = [
    subprocess.Popen(
      [sys.executable, '-c', code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
      text=True,
      env={**os.environ, 'JAX_PLATFORMS': 'cpu', **{k: filled(v, i) for k, v in env.items()}},
    )
    for i in range(2)
  ]  # fmt: skip
  for i, child in enumerate(children):
    out, lines = child.communicate(timeout=300)
    assert child.returncode == 0, lines
    assert out.splitlines()[-1] == f'2 {i} [0, 1]'  # the lines before it are gloo's


ONE_FAILS = """
import sys
from gdistill import errors
from gdistill.cli import exit_codes
from gdistill.devices import processes

def command():
  processes.start(sys.argv[1], 2, int(sys.argv[2]))
  if sys.argv[2] == '1':
    raise errors.DataError('one picture is broken')
  processes.barrier('which the other never reaches')

sys.exit(exit_codes.call(command, False))
"""


def together(script, count):
  """Starts `count` processes of a script; its arguments are the coordinator and a process id."""
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    port = s.getsockname()[1]
  return [
    subprocess.Popen(
      [sys.executable, '-c', script, f'127.0.0.1:{port}', str(i)], cwd=ROOT, text=True,
      stderr=subprocess.PIPE, env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
    )
    for i in range(count)
  ]  # fmt: skip


@pytest.mark.full
def test_one_process_that_fails_leaves_with_its_own_code_and_takes_the_others_along():
  children = together(ONE_FAILS, 2)
  _, lines = children[1].communicate(timeout=2 * waits.SECONDS)
  assert children[1].returncode == 3 and 'one picture is broken' in lines
  began = time.monotonic()
  children[0].communicate(timeout=waits.SECONDS)
  assert children[0].returncode not in (0, 3)
  assert time.monotonic() - began < 150  # it takes HEARTBEAT, 20 s; JAX alone would wait 300 s


ONE_IS_LATE = """
import sys, time
import jax
from gdistill.cli import exit_codes
from gdistill.devices import processes

def command():
  processes.start(sys.argv[1], 3, int(sys.argv[2]))
  jax.devices()  # waits until all processes have started
  if sys.argv[2] == '1':
    time.sleep(3600)
  processes.barrier('the round begins', hours=20 / 3600)
  return 0

exit_codes.exit_process(exit_codes.call(command, False))
"""


@pytest.mark.full
def test_who_does_not_come_in_time_is_named():
  children = together(ONE_IS_LATE, 3)
  try:
    _, lines = children[0].communicate(timeout=2 * waits.SECONDS)
  finally:
    for child in children:
      child.kill()
      child.communicate()
  assert 'the round begins: processes [1] did not come within' in lines
  assert children[0].returncode == 134
