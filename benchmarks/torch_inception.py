"""torch-fidelity's Inception-v3 with random weights whose features differ between pictures.

Weights follow He's initialisation, and the statistics of the norms are taken from pictures.
torch-fidelity imports torchvision, for data sets that are not used here; mocks take the place of
torchvision.
"""

import importlib
import sys
from unittest import mock

import numpy as np
import torch

NAMES = ('64', '192', '768', '2048', 'logits_unbiased', 'logits')


def module(name: str = 'feature_extractor_inceptionv3'):
  """Returns a module of torch_fidelity; raises ImportError if torch_fidelity is not installed."""
  absent = ('', '.datasets', '.transforms', '.transforms.functional')
  stand_ins = {f'torchvision{name}': mock.MagicMock() for name in absent}
  for data_set in ('CIFAR10', 'STL10', 'CIFAR100'):  # torch_fidelity derives classes from these
    setattr(stand_ins['torchvision.datasets'], data_set, object)
  with mock.patch.dict(sys.modules, stand_ins):
    return importlib.import_module(f'torch_fidelity.{name}')


def pictures(size: int, count: int = 4, seed: int = 0) -> np.ndarray:
  """Returns uint8 [count, 3, size, size]: smooth shapes with noise, so that features differ."""
  rng = np.random.default_rng(seed)
  coarse = rng.integers(0, 256, (count, 3, 4, 4)).repeat(size // 4 + 1, 2).repeat(size // 4 + 1, 3)
  noise = rng.normal(0, 25, (count, 3, size, size))
  return np.clip(coarse[:, :, :size, :size] + noise, 0, 255).astype(np.uint8)


def network(names: tuple[str, ...] = NAMES) -> torch.nn.Module:
  """Returns the network with weights for which different pictures have different features.

  Plain random weights map every picture to almost the same features.
  """
  theirs = module()
  cls = theirs.FeatureExtractorInceptionV3
  with (
    mock.patch.object(theirs, 'load_state_dict_from_url', lambda *a, **k: {}),
    mock.patch.object(cls, 'load_state_dict', lambda self, state: None),
  ):
    net = cls('ours', list(names))
  torch.manual_seed(0)
  for layer in net.modules():
    if isinstance(layer, torch.nn.Conv2d):
      torch.nn.init.kaiming_normal_(layer.weight, nonlinearity='relu')
    elif isinstance(layer, torch.nn.BatchNorm2d):
      torch.nn.init.uniform_(layer.weight, 0.5, 1.5)
      torch.nn.init.normal_(layer.bias, 0.0, 0.1)
      layer.reset_running_stats()
      layer.momentum = None
  torch.nn.init.normal_(net.fc.weight, 0.0, 0.05)
  torch.nn.init.normal_(net.fc.bias)
  net.train()
  with torch.no_grad():
    net(torch.from_numpy(pictures(299, 8, seed=1)))
  return net.eval()
