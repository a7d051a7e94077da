"""Tests of the sharding rule, and of the rows of a batch that each process holds."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from gdistill import errors
from gdistill.devices import mesh as meshes
from gdistill.devices import sharding


def fake_mesh(data, fsdp, slices=1):
  return meshes.make_mesh(data, fsdp, slices, devices=slices * data * fsdp)


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


def test_a_process_puts_its_own_rows_where_its_devices_are(monkeypatch):
  """Alternates the devices of two processes, as a pod may: a process's rows are not contiguous."""
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
