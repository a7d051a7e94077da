"""FID's Inception-v3 equals torch-fidelity's, with the same random, calibrated weights."""

import importlib.util
import pathlib
import sys

import jax
import numpy as np
import pytest

from gdistill.convert import inception as convert
from gdistill.models import inception

torch = pytest.importorskip('torch', reason='bash launch/test.sh parity installs torch')
if importlib.util.find_spec('torch_fidelity') is None:
  pytest.skip('bash launch/test.sh parity installs torch_fidelity', allow_module_level=True)
sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / 'benchmarks'))
import torch_inception  # noqa: E402
from torch_inception import NAMES  # noqa: E402
from torch_inception import pictures  # noqa: E402

theirs = torch_inception.module()
pytestmark = pytest.mark.parity


@pytest.fixture(scope='module')
def network():
  return torch_inception.network()


@pytest.fixture(scope='module')
def ours(network):
  params = convert.params_from({k: v.numpy() for k, v in network.state_dict().items()})
  return jax.jit(lambda x: inception.Inception().apply({'params': params}, x))


@pytest.mark.parametrize('size', [32, 64, 256, 299])
def test_inputs_are_resized_as_tensorflow_1_did(size):
  x = pictures(size)
  expected = theirs.interpolate_bilinear_2d_like_tensorflow1x(
    torch.from_numpy(x).float(), size=(299, 299), align_corners=False
  )
  found = inception.prepared(np.moveaxis(x, 1, -1))
  np.testing.assert_allclose(
    np.moveaxis(found, -1, 1), (expected.numpy() - 128) / 128, atol=1e-5, rtol=0
  )


@pytest.mark.parametrize('size', [32, 64, 256, 299])
def test_every_tap_and_logit_is_that_of_torch_fidelity(network, ours, size):
  x = pictures(size, seed=2)
  with torch.no_grad():
    expected = dict(zip(NAMES, network(torch.from_numpy(x)), strict=True))
  found = ours(inception.prepared(np.moveaxis(x, 1, -1)))
  for name, value in expected.items():
    value = value.numpy()
    assert value.std(0).max() > 1e-2, 'the pictures must differ in their features'
    error = np.linalg.norm(found[name] - value) / np.linalg.norm(value)
    assert error < 1e-4, (name, error)
