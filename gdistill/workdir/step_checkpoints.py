"""Saves, prunes and restores the numbered checkpoints of a round in training."""

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

# Seconds before a failed save is repeated, because meanwhile an object store may answer again or a
# disk may have free space.
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

  Once the new checkpoint is complete, incomplete checkpoints are removed, and complete checkpoints
  older than the newest `keep` are removed. `watch()` is called before the manifest is written, and
  raises ConfigError if another process has taken the workdir's lock. Raises ConfigError if `keep`
  is below 1.
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
    except Exception as e:  # the run continues: the new checkpoint is saved
      logging.warning(
        'old steps before %s/%s could not be removed: %s', folder, step, errors.brief(e)
      )
  return stored


def _prune(folder: epath.Path, step: int, keep: int) -> None:
  """Removes incomplete checkpoints, and old complete checkpoints in the folder of a round.

  Of the complete checkpoints before `step`, the newest `keep` stay.
  """
  steps = [s for s in _steps(folder) if s != step]
  # list_dir raises if the object store cannot be reached. storage.exists might return False then,
  # and a complete checkpoint would be removed as incomplete.
  incomplete = [s for s in steps if 'manifest.json' not in storage.list_dir(folder / str(s))]
  older = [s for s in steps if s < step and checkpoints.is_complete(folder / str(s))]
  _remove_steps(folder, incomplete + older[: max(0, len(older) - keep)])


def _make_room(folder: epath.Path, step: int) -> None:
  """Frees disk space: removes complete checkpoints older than the newest undamaged checkpoint.

  Only checkpoints before `step` are considered. Nothing is removed if every complete checkpoint is
  damaged.
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
    except Exception as e:  # the run continues: a newer checkpoint is saved
      logging.warning('step %s/%s was not removed: %s', folder, s, errors.brief(e))


class Saver:
  """A background thread that calls `save_step`; the newest `keep` checkpoints stay on disk.

  One checkpoint is saved at a time. If a save fails, the next call of `check`, `save` or `wait`
  raises the error of that save. In a run of several processes, `save` does not use the background
  thread, because each process could reach the barriers of a save and of training in another order.
  """

  def __init__(self, folder: epath.PathLike, keep: int, watch: checkpoints.Watch = lambda: None):
    self._folder, self._keep, self._watch = storage.path(folder), keep, watch
    self._thread = concurrent.futures.ThreadPoolExecutor(1, 'gdistill-save')
    self._pending: concurrent.futures.Future | None = None

  def __enter__(self) -> 'Saver':
    return self

  def __exit__(self, kind, *exc) -> None:
    self._thread.shutdown(wait=True)  # waits for a save in progress
    try:
      self.wait()
    except Exception as e:
      if kind is None:
        raise
      # Logged, because raising the error of the save would hide the error that ended the run.
      logging.error('a save failed as well: %s', errors.brief(e))

  def save(self, step: int, tree: Any) -> None:
    """Starts saving `tree` as checkpoint `step`, after waiting for the previous save.

    With one process, `save` returns as soon as the tree has been copied to this host's memory.
    """
    self.wait()
    if jax.process_count() > 1:
      self._save_step(step, tree)
      return
    # Views are copied, because on a CPU device_get may return views of the tree's buffers, and the
    # next update overwrites the buffers.
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
    """Raises the error of the last save if that save failed; never waits for a save in progress."""
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
  """Returns (step, tree, meta) of the newest undamaged checkpoint; None if none was completed.

  Damaged checkpoints that are newer are not removed: in a local folder they are renamed, and in an
  object store they are marked with CORRUPT.json. Raises CheckpointError if every complete
  checkpoint is damaged, or if the leaves of an undamaged checkpoint do not fit the target. `target`
  and `shardings` mean the same as in `checkpoints.restore`.
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
  """Returns the step numbers of checkpoints not marked as damaged, in ascending order."""
  names = [n for n in storage.list_dir(folder) if n.isascii() and n.isdigit()]
  return sorted(int(n) for n in names if not storage.exists(folder / n / 'CORRUPT.json'))


def _already_set_aside(folder: epath.Path) -> dict[str, str]:
  """Returns {name: kind of damage} of checkpoints that `_set_aside` has renamed or marked."""
  found = {}
  for name in storage.list_dir(folder):
    if '.corrupt-' in name:
      found[name] = name.partition('.corrupt-')[2]
    elif storage.exists(folder / name / 'CORRUPT.json'):
      found[name] = 'see its CORRUPT.json'
  return found


def _set_aside(folder: epath.Path, step: int, damage: checkpoints.Corrupt) -> None:
  """Renames a damaged checkpoint; in an object store, which cannot rename, adds CORRUPT.json.

  If the checkpoint cannot be renamed or marked, logs a warning and leaves the checkpoint as is.
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
