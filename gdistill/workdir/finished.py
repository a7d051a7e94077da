"""A finished round on disk: its parameters, and card.json, which is written last."""

from typing import Any

import jax
from etils import epath

from gdistill import errors
from gdistill.devices import processes
from gdistill.workdir import checkpoints
from gdistill.workdir import storage

_FOREIGN = ('.pt', '.pth', '.pkl', '.ckpt', '.bin', '.npz', '.h5', '.msgpack', '.safetensors')


# ---- a round: params/ and card.json


def finish(folder: epath.PathLike, params: Any, card: dict) -> dict:
  """Saves folder/params, then card.json, which makes the round finished; returns the card."""
  folder = storage.path(folder)
  if is_finished(folder):
    done = read_card(folder)
    if done['params_digest'] != checkpoints.digest_of(checkpoints.inspect(folder, params)[1]):
      raise errors.CheckpointError(
        f'{folder} is finished, with other parameters; choose another folder or remove this one'
      )
    return done
  card = {
    **card,
    'params_digest': checkpoints.tree_digest(checkpoints.save(folder / 'params', params)),
  }
  if jax.process_index() == 0:
    storage.write_once(folder / 'card.json', checkpoints.sealed(card))
  processes.barrier(f'{folder} is finished')
  return read_card(folder)


def is_finished(folder: epath.PathLike) -> bool:
  return storage.exists(storage.path(folder) / 'card.json')


def read_card(folder: epath.PathLike) -> dict:
  folder = storage.path(folder)
  if folder.suffix.lower() in _FOREIGN:
    raise errors.ConfigError(
      f'{folder} is a {folder.suffix} file, not a round folder; name WORKDIR/<round> of a run'
    )
  if not is_finished(folder):
    if not storage.exists(folder):
      raise errors.CheckpointError(f'{folder} does not exist; check the path of the round folder')
    if storage.list_dir(folder / 'steps') or storage.exists(folder / 'params'):
      raise errors.CheckpointError(
        f'{folder} is a round without card.json: it was not finished; run it to its end'
      )
    raise errors.ConfigError(
      f'{folder} is not a round folder: it has no card.json; name the folder of a finished round'
    )
  return checkpoints.unseal(folder / 'card.json', 'card')


def params_digest(folder: epath.PathLike) -> str:
  """The digest of a finished round's parameters, which its card and its manifest agree on."""
  folder = storage.path(folder)
  wanted = read_card(folder).get('params_digest')
  if wanted != checkpoints.tree_digest(checkpoints.read_manifest(folder / 'params')):
    raise checkpoints.Corrupt(
      'card', folder, 'card.json was written for other parameters than params/'
    )
  return wanted


def read_params(folder: epath.PathLike, target: Any = None, shardings: Any = None) -> Any:
  params_digest(folder)
  return checkpoints.restore(storage.path(folder) / 'params', target, shardings)
