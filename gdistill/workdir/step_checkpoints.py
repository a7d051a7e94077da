"""The numbered checkpoints of a round in training: saved in the background, pruned, restored."""

import concurrent.futures
import time
from collections.abc import Iterable
from typing import Any

import jax
from absl import logging
from etils import epath

from gdistill import errors
from gdistill.devices import processes
from gdistill.workdir import checkpoints
from gdistill.workdir import leaves
from gdistill.workdir import storage

# Seconds before a failed save is repeated: an object store may answer again, a disk may have room.
_RETRY = 5.0


def save_step(
  folder: epath.PathLike,
  step: int,
  tree: Any,
  meta: dict | None = None,
  keep: int = 3,
  watch: checkpoints.Watch = lambda: None,
) -> dict:
  """Saves the checkpoint folder/<step> and returns the manifest.

  Once the checkpoint is complete, older steps beyond the newest `keep`, and incomplete steps, are
  removed. `watch()` raises if another process has taken the lock. ConfigError if `keep` is below 1.
  """
  if keep < 1:
    raise errors.ConfigError(f'{keep=} must be at least 1')
  folder = storage.path(folder)
  stored = checkpoints.save(
    folder / str(step), tree, meta={**(meta or {}), 'step': step}, watch=watch
  )
  if jax.process_index() == 0:
    try:
      _prune(folder, step, keep - 1)
    except Exception as e:  # the run continues, because the new step is saved
      logging.warning(
        'old steps before %s/%s could not be removed: %s', folder, step, errors.brief(e)
      )
  return stored


def _prune(folder: epath.Path, step: int, keep: int) -> None:
  """Removes complete steps before `step` beyond the newest `keep`, and incomplete steps."""
  steps = [s for s in _steps(folder) if s != step]
  # A listing raises if the store cannot be reached. `storage.exists` might return False instead,
  # and a complete step would be removed as incomplete.
  incomplete = [s for s in steps if 'manifest.json' not in storage.list_dir(folder / str(s))]
  older = [s for s in steps if s < step and checkpoints.is_complete(folder / str(s))]
  _remove_steps(folder, incomplete + older[: max(0, len(older) - keep)])


def _make_room(folder: epath.Path, step: int) -> None:
  """Removes all complete steps before the newest undamaged step that is older than `step`.

  Nothing is removed if every complete step is damaged.
  """
  older = [s for s in _steps(folder) if s < step and checkpoints.is_complete(folder / str(s))]
  for newest in reversed(older):
    one = folder / str(newest)
    if checkpoints.file_digests(one) == checkpoints.read_manifest(one)['files']:
      _remove_steps(folder, [s for s in older if s < newest])
      return


def _remove_steps(folder: epath.Path, steps: Iterable[int]) -> None:
  for s in steps:
    try:
      checkpoints.remove(folder / str(s))
    except Exception as e:  # the run continues, because a newer step is saved
      logging.warning('step %s/%s was not removed: %s', folder, s, errors.brief(e))


class Saver:
  """A background thread that calls `save_step`; the newest `keep` checkpoints stay on disk.

  One checkpoint is saved at a time. If a save fails, the next call of `check`, `save` or `wait`
  raises the error of that save. In a run of several processes, `save` does not use the thread:
  barriers in the thread could meet the barriers of training in another order on each process.
  """

  def __init__(self, folder: epath.PathLike, keep: int, watch: checkpoints.Watch = lambda: None):
    self._folder, self._keep, self._watch = storage.path(folder), keep, watch
    self._thread = concurrent.futures.ThreadPoolExecutor(1, 'gdistill-save')
    self._pending: concurrent.futures.Future | None = None

  def __enter__(self) -> 'Saver':
    return self

  def __exit__(self, kind, *exc) -> None:
    self._thread.shutdown(wait=True)  # a save in progress is finished
    try:
      self.wait()
    except Exception as e:
      if kind is None:
        raise
      # Logged, because raising the error of the save would hide the error that ended the run.
      logging.error('a save failed as well: %s', errors.brief(e))

  def save(self, step: int, tree: Any) -> None:
    """Starts the save of `step`, and returns when the tree has been copied to this host's memory.

    First waits for the previous save.
    """
    self.wait()
    if jax.process_count() > 1:
      self._save_step(step, tree)
      return
    # On CPU, device_get may return views of the tree's buffers, which the next update overwrites.
    tree = jax.tree.map(lambda a: a if a.flags.owndata else a.copy(), jax.device_get(tree))
    self._pending = self._thread.submit(self._save, step, tree)

  def _save(self, step: int, tree: Any) -> None:
    try:
      self._save_step(step, tree)
    except errors.CheckpointError as e:
      logging.warning('the save of step %s failed and is tried once more: %s', step, e)
      time.sleep(_RETRY)
      if errors.is_full(e):
        _make_room(self._folder, step)
      self._save_step(step, tree)

  def _save_step(self, step: int, tree: Any) -> None:
    save_step(self._folder, step, tree, keep=self._keep, watch=self._watch)

  def check(self) -> None:
    """Raises the error of the last save if that save failed; waits for no save in progress."""
    if self._pending is not None and self._pending.done():
      self.wait()

  def wait(self) -> None:
    """Waits for the save in progress, and raises the error of that save if the save failed."""
    pending, self._pending = self._pending, None
    if pending is not None:
      pending.result()


def restore_latest(
  folder: epath.PathLike, target: Any = None, shardings: Any = None
) -> tuple[int, Any, dict] | None:
  """Returns (step, tree, meta) of the newest undamaged step; None if no step was ever completed.

  Newer steps that are damaged are renamed or marked, not removed. CheckpointError if every step is
  damaged, or if the leaves of an undamaged step do not fit the target. `target` and `shardings` are
  as in `checkpoints.restore`.
  """
  folder = storage.path(folder)
  rejected = _already_set_aside(folder)
  steps = _steps(folder)
  processes.barrier(f'{folder} is listed')
  for step in reversed(steps):
    one, damage, stored, arrays = folder / str(step), None, None, None
    if not storage.exists(one / 'manifest.json'):
      logging.warning('%s is ignored: the save of this step was not finished', one)
      continue
    try:
      stored = checkpoints.read_manifest(one)
      if stored['meta'].get('step') != step:
        raise checkpoints.Corrupt(
          'manifest', one, f'manifest.json belongs to step {stored["meta"].get("step")}'
        )
      leaves.check_target(one, stored['leaves'], target)
      arrays = checkpoints.read_arrays(one, stored)
    except checkpoints.Corrupt as e:
      damage = e
    if processes.any_process(damage is not None):
      damage = damage or checkpoints.Corrupt('elsewhere', one, 'another process finds it damaged')
      rejected[str(step)] = damage.why
      if jax.process_index() == 0:
        _set_aside(folder, step, damage)
      continue
    return step, leaves.build(one, arrays, target, shardings), stored['meta']
  if rejected:
    each = ', '.join(f'{name} ({why})' for name, why in rejected.items())
    raise errors.CheckpointError(
      f'{folder}: every step is damaged: {each}; restore one step from a copy, '
      'or remove the folder to start this round again'
    )
  return None


def _steps(folder: epath.Path) -> list[int]:
  """Returns the steps in the folder that have not been set aside, in ascending order."""
  names = [n for n in storage.list_dir(folder) if n.isascii() and n.isdigit()]
  return sorted(int(n) for n in names if not storage.exists(folder / n / 'CORRUPT.json'))


def _already_set_aside(folder: epath.Path) -> dict[str, str]:
  """Returns {name: kind of damage} of the steps that an earlier restore has set aside."""
  found = {}
  for name in storage.list_dir(folder):
    if '.corrupt-' in name:
      found[name] = name.partition('.corrupt-')[2]
    elif storage.exists(folder / name / 'CORRUPT.json'):
      found[name] = 'see its CORRUPT.json'
  return found


def _set_aside(folder: epath.Path, step: int, damage: checkpoints.Corrupt) -> None:
  """Renames a damaged step, or marks it with CORRUPT.json in an object store, which cannot rename.

  Logs one line. If the step cannot be renamed or marked, logs a warning and leaves the step.
  """
  logging.error('step %s is set aside (%s): %s', step, damage.why, damage)
  try:
    if storage.is_local(folder):
      name, n = f'{step}.corrupt-{damage.why}', 1
      while storage.exists(folder / name):
        name, n = f'{step}.corrupt-{damage.why}-{n + 1}', n + 1
      storage.move_tree(folder / str(step), folder / name)
    else:
      marker = {'why': damage.why, 'message': str(damage)}
      storage.write_json(folder / str(step) / 'CORRUPT.json', marker)
  except (OSError, errors.CheckpointError) as e:
    logging.warning('the damaged step %s could not be set aside: %s', step, errors.brief(e))
