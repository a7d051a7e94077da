"""What all families share: the Teacher, and reading of files and configs."""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np

from gdistill import errors
from gdistill.convert import autoencoder as autoencoders
from gdistill.convert import files
from gdistill.convert import folding
from gdistill.convert import text as texts
from gdistill.recipe import checks as recipe_checks
from gdistill.recipe import settings as recipes
from gdistill.rounds import network as networks

WEIGHTS = 'diffusion_pytorch_model.safetensors'
DDPM_NOISE = recipes.Noise('linear_beta', beta_start=1e-4, beta_end=0.02)


@dataclasses.dataclass(frozen=True, eq=False)
class Teacher:
  """A network with what it needs. `null` says what it sees when it is conditioned on nothing.

  'trained' is a null condition of its own; 'network' another network's parameters, `null_params`;
  'none' neither: it cannot be guided alone.
  """

  kind: str
  settings: recipes.Model
  noise: recipes.Noise
  params: dict
  null: Literal['trained', 'network', 'none']
  null_params: dict | None
  autoencoder: autoencoders.Autoencoder | None
  text: texts.TextEncoder | None
  about: Mapping[str, Any]  # digest, licence, epsilon, head order, null rule: for the card


def digest(state: Mapping[str, np.ndarray]) -> str:
  """sha256 over sorted names, types, shapes and bytes."""
  found = hashlib.sha256()
  for name in sorted(state):
    value = np.ascontiguousarray(state[name])
    found.update(f'{name} {value.dtype} {value.shape}\n'.encode())
    found.update(value.tobytes())
  return found.hexdigest()


def read_part(path: pathlib.Path, name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  return read_json(path / name / 'config.json'), read_state(one_file(path / name))


def read_state(file: pathlib.Path) -> dict[str, np.ndarray]:
  state = files.weights(file)
  check_finite(file, state)
  return state


def check_finite(where: Any, state: Mapping[str, np.ndarray]) -> None:
  """DataError names the first array that is not finite, as float32, of what `where` holds."""
  for name, a in state.items():
    if not np.isfinite(np.asarray(a, np.float32)).all():
      raise errors.DataError(f'{where}: {name} is not finite: it is damaged; download it again')


def sample_size(config: Mapping[str, Any], default: int) -> int:
  """The side of the images that config.json speaks of."""
  size = config.get('sample_size')
  size = default if size is None else size
  side = size[0] if isinstance(size, list) and len(size) == 2 and size[0] == size[1] else size
  if not folding.is_count(side):
    raise errors.ConfigError(
      f'sample_size={size!r} must be a whole number of at least 1, or twice the same in a list'
    )
  return side


def check_network(settings: recipes.Model, noise: recipes.Noise) -> networks.Network:
  """The network of these settings; ConfigError where a recipe could not have them."""
  recipe_checks.check_model(settings)
  recipe_checks.check_noise(noise)
  return networks.build(settings, False, noise_settings=noise)


@contextlib.contextmanager
def naming(where: pathlib.Path) -> Iterator[None]:
  """Errors begin with what they are of."""
  try:
    yield
  except errors.ConfigError as e:
    raise errors.ConfigError(f'{where}: {errors.brief(e)}') from e


def one_file(path: pathlib.Path) -> pathlib.Path:
  """The safetensors of a folder, or the file itself; ConfigError or DataError where it is none."""
  return files.find(path, WEIGHTS)


def read_json(file: pathlib.Path) -> dict[str, Any]:
  """The settings in a file; DataError where there are none."""
  try:
    found = json.loads(file.read_text(encoding='utf-8'))
  except OSError as e:
    raise errors.DataError(f'{file} cannot be read: {e.strerror}; download it') from e
  except (ValueError, RecursionError) as e:
    raise errors.DataError(f'{file} is damaged: {errors.brief(e)}; download it again') from e
  if not isinstance(found, dict):
    raise errors.DataError(f'{file} is damaged: it holds no settings; download it again')
  return found
