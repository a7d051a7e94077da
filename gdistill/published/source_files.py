"""Reads the JSON and safetensors files of a published network; every error names the file."""

import contextlib
import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from gdistill import errors
from gdistill.convert import files

WEIGHTS_NAME = 'diffusion_pytorch_model.safetensors'  # name of a weights file in diffusers


def read_component(folder: pathlib.Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """Returns (content of config.json, {name: array}) from the diffusers folder of one network."""
  return read_json(folder / 'config.json'), read_weights(weights_file(folder))


def weights_file(path: pathlib.Path) -> pathlib.Path:
  """Returns the path of the .safetensors file at `path`, or of the JSON index of several shards.

  `path` is a file or a folder. Raises ConfigError if the weights are a PyTorch pickle. Raises
  DataError if `path` holds no .safetensors file, or several .safetensors files of which none has
  the expected name.
  """
  return files.find(path, WEIGHTS_NAME)


def read_weights(file: pathlib.Path) -> dict[str, np.ndarray]:
  """Returns {name: array} of the weights at `file`, a path that `weights_file` returned.

  Raises DataError if an array has a NaN or an infinity.
  """
  state = files.weights(file)
  check_finite(file, state)
  return state


def read_json(file: pathlib.Path) -> dict[str, Any]:
  """Returns the JSON object in `file` as a dict.

  Raises DataError if `file` is unreadable or holds no JSON object.
  """
  try:
    found = json.loads(file.read_bytes())
  except OSError as e:
    raise errors.DataError(
      f'{file} cannot be read: {e.strerror}; download the file, or correct its permissions'
    ) from e
  except (ValueError, RecursionError) as e:
    raise errors.DataError(f'{file} is damaged: {errors.brief(e)}; download the file again') from e
  if not isinstance(found, dict):
    raise errors.DataError(
      f'{file} is damaged: the content is no JSON object; download the file again'
    )
  return found


def check_finite(where: Any, state: Mapping[str, np.ndarray]) -> None:
  """Raises DataError with the name of the first array in `state` that has a NaN or an infinity.

  Values that overflow float32 count as infinite. `where` is the source of the arrays that the
  error line names: a file, a folder or a command-line argument.
  """
  for name, a in state.items():
    if not np.isfinite(np.asarray(a, np.float32)).all():
      raise errors.DataError(
        f'{where}: {name} is not finite (holds NaN or infinity), so the weights are damaged; '
        'download the weights again'
      )


@contextlib.contextmanager
def errors_begin_with(where: pathlib.Path) -> Iterator[None]:
  """Context manager that puts '<where>: ' before the message of a ConfigError raised inside."""
  try:
    yield
  except errors.ConfigError as e:
    raise errors.ConfigError(f'{where}: {errors.brief(e)}') from e


def digest(state: Mapping[str, np.ndarray]) -> str:
  """Returns the sha256, in hex, of the names (sorted), types, shapes and bytes of the arrays."""
  found = hashlib.sha256()
  for name in sorted(state):
    value = np.ascontiguousarray(state[name])
    found.update(f'{name} {value.dtype} {value.shape}\n'.encode())
    found.update(value.tobytes())
  return found.hexdigest()
