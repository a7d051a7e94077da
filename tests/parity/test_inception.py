"""FID's Inception-v3 against torch-fidelity's, on the same random, calibrated weights."""

import sys
from unittest import mock

import jax
import numpy as np
import pytest

from gdistill.convert import inception as convert
from gdistill.models import inception

torch = pytest.importorskip('torch', reason='bash launch/test.sh parity installs torch')

# It imports torchvision, for data sets that nobody here asks it for.
absent = ('', '.datasets', '.transforms', '.transforms.functional')
stand_ins = {f'torchvision{name}': mock.MagicMock() for name in absent}
for data_set in ('CIFAR10', 'STL10', 'CIFAR100'):  # which it makes classes of
  setattr(stand_ins['torchvision.datasets'], data_set, object)
with mock.patch.dict(sys.modules, stand_ins):
  theirs = pytest.importorskip(
    'torch_fidelity.feature_extractor_inceptionv3', reason='bash launch/test.sh parity installs it'
  )
pytestmark = pytest.mark.parity
NAMES = ('64', '192', '768', '2048', 'logits_unbiased', 'logits')


def pictures(size, count=4, seed=0):
  """uint8 [count, 3, size, size]: smooth shapes and noise, or all features would be alike."""
  rng = np.random.default_rng(seed)
  coarse = rng.integers(0, 256, (count, 3, 4, 4)).repeat(size // 4 + 1, 2).repeat(size // 4 + 1, 3)
  noise = rng.normal(0, 25, (count, 3, size, size))
  return np.clip(coarse[:, :, :size, :size] + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope='module')
def network():
  """He's initial weights and batch norms that have seen pictures: plain random ones map every
  picture to the same features.
  """
  cls = theirs.FeatureExtractorInceptionV3
  with pytest.MonkeyPatch.context() as m:
    m.setattr(theirs, 'load_state_dict_from_url', lambda *a, **k: {})
    m.setattr(cls, 'load_state_dict', lambda self, state: None)
    net = cls('ours', list(NAMES))
  torch.manual_seed(0)
  for module in net.modules():
    if isinstance(module, torch.nn.Conv2d):
      torch.nn.init.kaiming_normal_(module.weight, nonlinearity='relu')
    elif isinstance(module, torch.nn.BatchNorm2d):
      torch.nn.init.uniform_(module.weight, 0.5, 1.5)
      torch.nn.init.normal_(module.bias, 0.0, 0.1)
      module.reset_running_stats()
      module.momentum = None
  torch.nn.init.normal_(net.fc.weight, 0.0, 0.05)
  torch.nn.init.normal_(net.fc.bias)
  net.train()
  with torch.no_grad():
    net(torch.from_numpy(pictures(299, 8, seed=1)))
  return net.eval()


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
