"""Tests of the mesh: its axes and checks, pods laid out in it, and the compile cache."""

import itertools
import os

import jax
import pytest

from gdistill import errors
from gdistill.devices import mesh as meshes


def test_a_mesh_must_be_made_of_the_devices_there_are():
  mesh = meshes.make_mesh(-1, 1)
  assert dict(mesh.shape) == {'slice': 1, 'data': jax.device_count(), 'fsdp': 1}
  for data, fsdp in ((jax.device_count() + 1, 1), (1, 5 * jax.device_count()), (-1, 7)):
    with pytest.raises(errors.ConfigError, match=f'mesh.data={data} x mesh.fsdp={fsdp}'):
      meshes.make_mesh(data, fsdp)
  with pytest.raises(errors.ConfigError, match=r'mesh\.slices=3 must divide the number of .*, 8;'):
    meshes.make_mesh(-1, 1, slices=3, devices=8)
  with pytest.raises(errors.ConfigError, match=r'mesh\.slices=2 x mesh\.data=3 x mesh\.fsdp=1'):
    meshes.make_mesh(3, 1, slices=2, devices=8)


def test_what_is_left_is_left_of_a_slice():
  mesh = meshes.make_mesh(-1, 4, slices=2, devices=128)
  assert dict(mesh.shape) == {'slice': 2, 'data': 16, 'fsdp': 4} and mesh.size == 128


def test_a_batch_must_split_over_devices_and_microbatches():
  mesh = meshes.make_mesh(4, 2, devices=8)
  meshes.check_batch('teacher', 64, 2, mesh)
  with pytest.raises(errors.ConfigError, match=r'teacher\.batch_size=60 .* 8 devices'):
    meshes.check_batch('teacher', 60, 1, mesh)


class Chip:
  """A device with the attributes of a TPU device in JAX."""

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
  meshes.use_compile_cache()  # tests/conftest.py names another folder
  assert not told and not list(tmp_path.iterdir())
  monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR')
  meshes.use_compile_cache()
  folder = tmp_path / 'gdistill' / 'xla'
  assert told == [('jax_compilation_cache_dir', str(folder))]
  assert folder.stat().st_mode & 0o777 == 0o700
  told.clear()
  for nowhere in ('/dev/null', '~'):  # without a home, expanduser returns '~' unchanged
    monkeypatch.setenv('XDG_CACHE_HOME', nowhere)
    meshes.use_compile_cache()
    assert not told and not os.path.exists('~')
