"""Tests of the names of chips that are not here, and of what is said where nothing can compile."""

import importlib.util
import math

import pytest

from gdistill import errors
from gdistill.devices import topology

NAMES = {
  'v4:4x4x8': ('v4', (4, 4, 8), 1, 128),
  ' V5E:8x16 ': ('v5e', (8, 16), 1, 128),
  'v5p:2x2x1': ('v5p', (2, 2, 1), 1, 4),
  'v6e:1x1': ('v6e', (1, 1), 1, 1),
  'tpu7x:2x2x1': ('tpu7x', (2, 2, 1), 1, 8),  # two devices a chip
  '2x v5e:8x16': ('v5e', (8, 16), 2, 256),
  'h200:8': ('h200', (8,), 1, 8),
  # Google Cloud's tables of slices: N of v4 and v5p counts TensorCores, two a chip.
  'v4-8': ('v4', (2, 2, 1), 1, 4),
  'v4-16': ('v4', (2, 2, 2), 1, 8),
  'v4-32': ('v4', (2, 2, 4), 1, 16),
  'v4-64': ('v4', (2, 4, 4), 1, 32),
  'v4-128': ('v4', (4, 4, 4), 1, 64),
  'v4-256': ('v4', (4, 4, 8), 1, 128),
  'v4-512': ('v4', (4, 8, 8), 1, 256),
  'v5p-256': ('v5p', (4, 4, 8), 1, 128),
  'v5litepod-1': ('v5e', (1, 1), 1, 1),
  'v5litepod-4': ('v5e', (2, 2), 1, 4),
  'v5litepod-8': ('v5e', (2, 4), 1, 8),
  'v5litepod-16': ('v5e', (4, 4), 1, 16),
  'v5litepod-128': ('v5e', (8, 16), 1, 128),
  'v6e-256': ('v6e', (16, 16), 1, 256),
  '2x v6e-64': ('v6e', (8, 8), 2, 128),
}


@pytest.mark.parametrize('name', NAMES)
def test_names_as_users_write_them(name):
  kind, shape, slices, devices = NAMES[name]
  found = topology.parse(name)
  assert (found.kind, found.shape, found.slices, found.devices) == (kind, shape, slices, devices)
  assert topology.parse(str(found)) == found


@pytest.mark.parametrize(
  'name, part',
  [
    ('', 'is not a topology'),
    ('v4', 'is not a topology'),
    ('v4:', 'is not a topology'),
    ('v5litepod:2x4', 'perhaps v5e:2x4'),
    ('v7x:2x2x1', 'perhaps tpu7x:2x2x1'),
    ('v3:2x2', 'v3 is none of'),
    ('v4:4x4', 'named by 3 numbers of chips'),
    ('v5e:2x2x2', 'named by 2 numbers of chips'),
    ('v5e:0x4', 'named by 2 numbers of chips'),
    ('v5e:2xx4', 'named by 2 numbers of chips'),
    ('v5e-8', 'gcloud knows v4-N, v5p-N, v5litepod-N, v6e-N'),
    ('v4-6', 'no slice of v4 has 3 chips'),
    ('v4-7', 'no slice of v4 has 3.5 chips'),
    ('v5litepod-512', 'no slice of v5e has 512 chips'),
    ('2x h200:8', 'GPUs have no slices'),
  ],
)
def test_wrong_names_are_told_what_may_be_meant(name, part):
  with pytest.raises(errors.ConfigError, match='--topology=') as e:
    topology.parse(name)
  assert part in str(e.value)


def test_a_chip_is_described_as_jax_shows_it():
  assert topology.tpu_options(topology.parse('2x v5e:8x16')) == {
    'topology_name': 'v5e:8x16',
    'num_slices': 2,
  }
  assert topology.tpu_options(topology.parse('v4:2x2x1')) == {
    'topology_name': 'v4:2x2x1',
    'chip_config_name': 'megacore',  # one device a chip
  }
  assert topology.tpu_options(topology.parse('v5p:1x1x1'))['chips_per_host_bounds'] == (1, 1, 1)


@pytest.mark.parametrize('name, package', [('v4:4x4x8', 'libtpu'), ('h200:8', 'jax_plugins')])
def test_without_what_compiles_the_line_says_what_to_install(monkeypatch, name, package):
  find = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util, 'find_spec', lambda n, *a: None if n.startswith(package) else find(n, *a)
  )
  with pytest.raises(errors.ConfigError, match='pip install'):
    topology.check_installed(topology.parse(name))


def test_beside_tpus_nothing_is_compiled_for_others(monkeypatch):
  chips = topology.parse('v4:2x2x1')
  monkeypatch.setattr('os.path.exists', lambda path: False)
  assert topology.environment(chips)['ALLOW_MULTIPLE_LIBTPU_LOAD'] == '1'
  monkeypatch.setattr('os.path.exists', lambda path: path == '/dev/accel0')
  with pytest.raises(errors.ConfigError, match='this machine has TPUs'):
    topology.environment(chips)


def test_peaks_of_a_device():
  for chip in topology.CHIPS.values():
    # The fewest products per byte that keep a chip busy are 160 to 600 for all of these.
    assert 160 < chip.flops / chip.bandwidth < 650 and math.log2(chip.memory) > 33
