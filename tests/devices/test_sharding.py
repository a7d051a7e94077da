import importlib.util
import itertools
import os
import pathlib
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from gdistill import errors
from gdistill.devices import mesh as meshes
from gdistill.devices import processes
from gdistill.devices import sharding

ROOT = pathlib.Path(__file__).parents[2]


def fake_mesh(data, fsdp, slices=1):
  return meshes.make_mesh(data, fsdp, slices, devices=slices * data * fsdp)


def test_a_mesh_must_be_made_of_the_devices_there_are():
  mesh = meshes.make_mesh(-1, 1)
  assert dict(mesh.shape) == {'slice': 1, 'data': jax.device_count(), 'fsdp': 1}
  for data, fsdp in ((jax.device_count() + 1, 1), (1, 5 * jax.device_count()), (-1, 7)):
    with pytest.raises(errors.ConfigError, match=f'mesh.data={data} x mesh.fsdp={fsdp}'):
      meshes.make_mesh(data, fsdp)
  with pytest.raises(errors.ConfigError, match=r'mesh\.slices=3 must divide the 8 devices'):
    meshes.make_mesh(-1, 1, slices=3, devices=8)
  with pytest.raises(errors.ConfigError, match=r'mesh\.slices=2 x mesh\.data=3 x mesh\.fsdp=1'):
    meshes.make_mesh(3, 1, slices=2, devices=8)


def test_what_is_left_is_left_of_a_slice():
  mesh = meshes.make_mesh(-1, 4, slices=2, devices=128)
  assert dict(mesh.shape) == {'slice': 2, 'data': 16, 'fsdp': 4} and mesh.size == 128


def test_a_batch_must_split_over_devices_and_microbatches():
  meshes.check_batch('teacher', 64, 2, fake_mesh(4, 2))
  with pytest.raises(errors.ConfigError, match=r'teacher\.batch_size=60 .* 8 devices'):
    meshes.check_batch('teacher', 60, 1, fake_mesh(4, 2))


def test_an_fsdp_axis_that_divides_nothing_is_refused():
  params = {'a': np.zeros((600, 900)), 'b': np.zeros(4)}
  sharding.check_fsdp(fake_mesh(1, 3), params)
  for other in (params, {'b': np.zeros(700)}):
    with pytest.raises(errors.ConfigError, match=r'mesh\.fsdp=7 divides no dimension'):
      sharding.check_fsdp(fake_mesh(1, 7), other)


def test_each_axis_splits_the_largest_dimension_it_divides_and_small_leaves_stay_whole():
  mesh = fake_mesh(data=8, fsdp=16)
  kernel, wide, bias = (3, 3, 192, 384), (100, 4096), (8192,)
  params = [sharding.leaf_sharding(mesh, shape).spec for shape in (kernel, wide, bias, ())]
  assert params == [
    PartitionSpec(None, None, None, 'fsdp'), PartitionSpec(None, 'fsdp'), PartitionSpec(),
    PartitionSpec(),
  ]  # fmt: skip
  held = [sharding.held_sharding(mesh, shape) for shape in (kernel, wide, bias)]
  assert [h.spec for h in held] == [
    PartitionSpec(None, None, 'data', 'fsdp'), PartitionSpec(None, ('fsdp', 'data')),
    PartitionSpec(),
  ]  # fmt: skip
  assert held[0].shard_shape(kernel) == (3, 3, 24, 24)
  assert held[1].shard_shape(wide) == (100, 32)


class Chip:
  """A device as JAX describes a TPU's."""

  platform, core_on_chip, process_index = 'tpu', 0, 0

  def __init__(self, kind, index, coords, slice_index):
    self.device_kind, self.id, self.coords, self.slice_index = kind, index, coords, slice_index


def chips(kind, shape, slices=1):
  found = itertools.product(range(slices), *(range(s) for s in reversed(shape)))
  return [Chip(kind, i, c[:0:-1], c[0]) for i, c in enumerate(found)]


@pytest.mark.parametrize(
  ('kind', 'shape', 'slices', 'data', 'fsdp'),
  [
    ('TPU v6 lite', (4, 4, 1), 1, 8, 2), ('TPU v4', (4, 4, 4), 1, 8, 8),
    ('TPU v4', (4, 4, 4), 1, -1, 2), ('TPU v5 lite', (4, 4, 1), 2, 2, 8),
    ('TPU v6 lite', (4, 4, 1), 2, -1, 1),
  ],
)  # fmt: skip
def test_a_pods_chips_take_any_axes_and_a_slice_is_one_of_the_slice_axis(
  monkeypatch, kind, shape, slices, data, fsdp
):
  there = chips(kind, shape, slices)
  monkeypatch.setattr(jax, 'devices', lambda *a: there)
  monkeypatch.setattr(jax, 'device_count', lambda: len(there))
  mesh = meshes.make_mesh(data, fsdp, slices)
  assert mesh.axis_names == meshes.AXES and mesh.shape['fsdp'] == fsdp
  assert {d.id for d in mesh.devices.flat} == set(range(len(there)))
  for i, part in enumerate(mesh.devices):
    assert {d.slice_index for d in part.flat} == {i}


def test_devices_that_do_not_make_the_mesh_are_one_line(monkeypatch):
  there = chips('TPU v5 lite', (4, 4, 1), 2)
  monkeypatch.setattr(jax, 'devices', lambda *a: there)
  monkeypatch.setattr(jax, 'device_count', lambda: len(there))
  with pytest.raises(errors.ConfigError, match=r'mesh\.slices=1, .* 32 devices in 2 slices'):
    meshes.make_mesh(-1, 1)


def test_a_process_puts_its_own_rows_where_its_devices_are(monkeypatch):
  """Devices of two processes in turns, as a pod may order them: a process's rows are scattered."""
  own = {f'own{i}': (slice(None), slice(4 * i, 4 * i + 2)) for i in range(3)}

  class Sharding:
    def addressable_devices_indices_map(self, shape):
      return own

  put = []
  monkeypatch.setattr(sharding, 'batches_sharding', lambda mesh: Sharding())
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  monkeypatch.setattr(
    jax, 'make_array_from_callback', lambda shape, _, shard: put.append((shape, shard)) or shape
  )
  rows = sharding.local_rows(None, 12)
  assert rows.tolist() == [0, 1, 4, 5, 8, 9]
  sharding.put_batches(None, 12, {'id': np.stack([rows, rows + 100])})
  [(shape, shard)] = put
  assert shape == (2, 12)
  for index in own.values():
    first = index[1].start
    assert shard(index).tolist() == [[first, first + 1], [first + 100, first + 101]]


def test_one_process_has_every_row():
  mesh = meshes.make_mesh(-1, 1)
  rows = sharding.local_rows(mesh, 8 * mesh.size)
  np.testing.assert_array_equal(rows, np.arange(8 * mesh.size))
  whole = {'a': np.arange(16.0 * mesh.size).reshape(2, -1), 'b': np.ones((2, 8 * mesh.size, 3))}
  put = sharding.put_batches(mesh, 8 * mesh.size, whole)
  jax.tree.map(np.testing.assert_array_equal, put, whole)


@pytest.mark.parametrize(
  ('env', 'found'),
  [
    ({}, None),
    ({'SLURM_NTASKS': '4', 'SLURM_PROCID': '0'}, None),  # a batch script, outside srun
    ({'SLURM_NTASKS': '4', 'SLURM_PROCID': '0', 'SLURM_STEP_NODELIST': 'n1'}, 'Slurm'),
    ({'SLURM_NTASKS': '1', 'SLURM_PROCID': '0', 'SLURM_STEP_NODELIST': 'n1'}, None),
    ({'OMPI_COMM_WORLD_SIZE': '2', 'OMPI_MCA_orte_hnp_uri': '1.0;tcp://h:1'}, 'MPI'),
    ({'OMPI_COMM_WORLD_SIZE': '1'}, None),
    ({'KUBERNETES_SERVICE_HOST': '10.0.0.1'}, None),  # some pod, not one of a job
    ({'KUBERNETES_SERVICE_HOST': '10.0.0.1', 'JOB_COMPLETION_INDEX': '1'}, 'Kubernetes'),
    ({'TPU_WORKER_HOSTNAMES': 'a,b', 'KUBERNETES_SERVICE_HOST': '10.0.0.1'}, 'TPU'),
    ({'TPU_WORKER_HOSTNAMES': 'a,b', 'JAX_PLATFORMS': 'cpu'}, None),
    ({'TPU_WORKER_HOSTNAMES': 'a,b', 'JAX_PLATFORMS': ''}, 'TPU'),  # '' is JAX's own choice
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
    (('localhost:1', 2, 2), 'must be from 0 to'),
    (('localhost', 2, 0), 'must be HOST:PORT'),
  ],
)
def test_half_told_processes_are_refused(given, words):
  with pytest.raises(errors.ConfigError, match=words):
    processes.start(*given)


def test_a_compile_cache_that_anyone_may_write_is_refused(tmp_path, monkeypatch):
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(tmp_path))
  tmp_path.chmod(0o700)
  meshes.check_compile_cache()
  tmp_path.chmod(0o777)
  with pytest.raises(errors.ConfigError, match='chmod 0700'):
    meshes.check_compile_cache()


def test_compiled_programs_are_kept_where_only_their_owner_may_write(tmp_path, monkeypatch):
  told = []
  monkeypatch.setattr(jax.config, 'update', lambda name, value: told.append((name, value)))
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  meshes.use_compile_cache()  # the tests have a place of their own
  assert not told and not list(tmp_path.iterdir())
  monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR')
  meshes.use_compile_cache()
  folder = tmp_path / 'gdistill' / 'xla'
  assert told == [('jax_compilation_cache_dir', str(folder))]
  assert folder.stat().st_mode & 0o777 == 0o700
  told.clear()
  for nowhere in ('/dev/null', '~'):  # '~': no home, which leaves it as it is
    monkeypatch.setenv('XDG_CACHE_HOME', nowhere)
    meshes.use_compile_cache()
    assert not told and not os.path.exists('~')


JOIN = """
import jax
from gdistill import parallel

parallel.start(None, None, None)
found = jax.experimental.multihost_utils.process_allgather(jax.process_index())
print(jax.process_count(), jax.process_index(), found.tolist())
"""
JOB = 40_000 + os.getpid() % 4096  # of which JAX makes the coordinator's port


@pytest.mark.parametrize(
  'env',
  [
    {
      'SLURM_JOB_ID': f'{JOB}', 'SLURM_STEP_NODELIST': 'localhost', 'SLURM_NTASKS': '2',
      'SLURM_PROCID': '{}', 'SLURM_LOCALID': '{}',
    },
    {
      'OMPI_MCA_orte_hnp_uri': f'{JOB + 1}.0;tcp://127.0.0.1:34911', 'OMPI_COMM_WORLD_SIZE': '2',
      'OMPI_COMM_WORLD_RANK': '{}', 'OMPI_COMM_WORLD_LOCAL_RANK': '{}',
    },
  ],
  ids=['Slurm', 'MPI'],
)  # fmt: skip
def test_two_processes_find_each_other_as_the_cluster_says(env):
  code = 'import jax.experimental.multihost_utils\n' + JOIN
  children = [
    subprocess.Popen(
      [sys.executable, '-c', code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
      text=True,
      env={**os.environ, 'JAX_PLATFORMS': 'cpu', **{k: v.format(i) for k, v in env.items()}},
    )
    for i in range(2)
  ]  # fmt: skip
  for i, child in enumerate(children):
    out, lines = child.communicate(timeout=300)
    assert child.returncode == 0, lines
    assert out.splitlines()[-1] == f'2 {i} [0, 1]'  # gloo prints too


ONE_FAILS = """
import sys
from gdistill import errors, parallel
from gdistill.cli import edge

def command():
  parallel.start(sys.argv[1], 2, int(sys.argv[2]))
  if sys.argv[2] == '1':
    raise errors.DataError('one picture is broken')
  parallel.barrier('which the other never reaches')

sys.exit(edge.call(command, False))
"""


def together(script, count):
  """So many processes of a script, which is told where to meet and which of them it is."""
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


@pytest.mark.heavy
def test_one_process_that_fails_leaves_with_its_own_code_and_takes_the_others_along():
  began = time.monotonic()
  children = together(ONE_FAILS, 2)
  _, lines = children[1].communicate(timeout=120)
  assert children[1].returncode == 3 and 'one picture is broken' in lines
  children[0].communicate(timeout=120)
  assert children[0].returncode not in (0, 3)
  assert time.monotonic() - began < 90  # JAX by itself would wait 300 s


ONE_IS_LATE = """
import sys, time
import jax
from gdistill import parallel
from gdistill.cli import edge

def command():
  parallel.start(sys.argv[1], 3, int(sys.argv[2]))
  jax.devices()  # for which all have to be there
  if sys.argv[2] == '1':
    time.sleep(12)
  parallel.barrier('the round begins', hours=4 / 3600)
  return 0

edge.leave(edge.call(command, False))
"""


@pytest.mark.heavy
def test_who_does_not_come_in_time_is_named():
  children = together(ONE_IS_LATE, 3)
  lines = [child.communicate(timeout=120)[1] for child in children]
  assert 'the round begins: processes [1] did not come within' in lines[0]
  assert children[0].returncode == 134
