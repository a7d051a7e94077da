"""A finished round on disk: the parameters in params/, and card.json, which is written last."""

from typing import Any

import jax
from etils import epath

from gdistill import errors
from gdistill.devices import processes
from gdistill.workdir import checkpoints
from gdistill.workdir import leaves
from gdistill.workdir import storage

# Suffixes of files in which other programs keep weights.
_FOREIGN = ('.pt', '.pth', '.pkl', '.ckpt', '.bin', '.npz', '.h5', '.msgpack', '.safetensors')


def finish(folder: epath.PathLike, params: Any, card: dict) -> dict:
  """Saves folder/params, then card.json, which marks the round as finished.

  Returns the contents of card.json, which are `card` and the key 'params_digest'. A round that is
  already finished is not changed, and CheckpointError is raised if the parameters of that round
  differ from `params`.
  """
  folder = storage.path(folder)
  if is_finished(folder):
    done = read_card(folder)
    _, entries = leaves.collect(folder, params)
    if done['params_digest'] != checkpoints.json_digest(entries):
      raise errors.CheckpointError(
        f'{folder} is finished, with other parameters; choose another folder, or remove {folder}'
      )
    return done
  card = {
    **card,
    'params_digest': checkpoints.tree_digest(checkpoints.save(folder / 'params', params)),
  }
  if jax.process_index() == 0:
    storage.write_once(folder / 'card.json', checkpoints.seal(card))
  processes.barrier(f'{folder} is finished')
  return read_card(folder)


def is_finished(folder: epath.PathLike) -> bool:
  """Returns whether the folder has a card.json, without checking the contents of card.json."""
  return storage.exists(storage.path(folder) / 'card.json')


def read_card(folder: epath.PathLike) -> dict:
  """Returns the contents of a finished round's card.json.

  Raises ConfigError if the folder is not a round folder, and CheckpointError if the folder does not
  exist, the round is not finished, or card.json is damaged.
  """
  folder = storage.path(folder)
  if folder.suffix.lower() in _FOREIGN:
    raise errors.ConfigError(
      f'{folder} is a {folder.suffix} file, not a round folder; give the folder WORKDIR/<round>'
    )
  if not is_finished(folder):
    if not storage.exists(folder):
      raise errors.CheckpointError(f'{folder} does not exist; check the path of the round folder')
    if storage.list_dir(folder / 'steps') or storage.exists(folder / 'params'):
      raise errors.CheckpointError(
        f'{folder} is a round without card.json: training did not finish; train again to resume'
      )
    raise errors.ConfigError(
      f'{folder} is not a round folder: it has no card.json; give the folder of a finished round'
    )
  return checkpoints.read_sealed(folder / 'card.json', 'card')


def params_digest(folder: epath.PathLike) -> str:
  """Returns the digest of a round's parameters; raises Corrupt if card.json has another digest."""
  folder = storage.path(folder)
  wanted = read_card(folder).get('params_digest')
  if wanted != checkpoints.tree_digest(checkpoints.read_manifest(folder / 'params')):
    raise checkpoints.Corrupt(
      'card', folder, 'card.json was written for other parameters than params/'
    )
  return wanted


def read_params(folder: epath.PathLike, target: Any = None, shardings: Any = None) -> Any:
  """Returns the parameters of a finished round, restored as in `checkpoints.restore`."""
  params_digest(folder)  # raises Corrupt if card.json does not belong to params/
  return checkpoints.restore(storage.path(folder) / 'params', target, shardings)
