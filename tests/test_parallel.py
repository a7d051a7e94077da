import types

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from gdistill import errors
from gdistill import parallel


def fake_mesh(data, fsdp):
  return types.SimpleNamespace(shape={'data': data, 'fsdp': fsdp}, size=data * fsdp)


def test_a_mesh_must_be_made_of_the_devices_there_are():
  mesh = parallel.make_mesh(-1, 1)
  assert dict(mesh.shape) == {'data': jax.device_count(), 'fsdp': 1}
  for data, fsdp in ((jax.device_count() + 1, 1), (1, 5 * jax.device_count()), (-1, 7)):
    with pytest.raises(errors.ConfigError, match=f'mesh.data={data} x mesh.fsdp={fsdp}'):
      parallel.make_mesh(data, fsdp)


def test_a_batch_must_split_over_devices_and_microbatches():
  parallel.check_batch('teacher', 64, 2, fake_mesh(4, 2))
  with pytest.raises(errors.ConfigError, match=r'teacher\.batch_size=60 .* 8 devices'):
    parallel.check_batch('teacher', 60, 1, fake_mesh(4, 2))


def test_an_fsdp_axis_that_divides_nothing_is_refused():
  params = {'a': np.zeros((6, 9)), 'b': np.zeros(4)}
  parallel.check_fsdp(fake_mesh(1, 3), params)
  with pytest.raises(errors.ConfigError, match=r'mesh\.fsdp=7 divides no dimension'):
    parallel.check_fsdp(fake_mesh(1, 7), params)


def test_the_largest_dimension_that_divides_is_split():
  mesh = jax.sharding.AbstractMesh((1, 4), ('data', 'fsdp'))
  found = [parallel.leaf_sharding(mesh, shape).spec for shape in ((3, 3, 8, 16), (16, 8), (6,), ())]
  assert found == [
    PartitionSpec(None, None, None, 'fsdp'), PartitionSpec('fsdp'), PartitionSpec(),
    PartitionSpec(),
  ]  # fmt: skip


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
    parallel.start(*given)


def test_a_compile_cache_that_anyone_may_write_is_refused(tmp_path, monkeypatch):
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(tmp_path))
  tmp_path.chmod(0o700)
  parallel.check_compile_cache()
  tmp_path.chmod(0o777)
  with pytest.raises(errors.ConfigError, match='chmod 0700'):
    parallel.check_compile_cache()
