"""The numbered checkpoints of a round in training: saved in the background, pruned, restored."""

import concurrent.futures
import errno
import os
import time
from collections.abc import Iterable
from typing import Any

import jax
from absl import logging
from etils import epath

from gdistill import errors
from gdistill.devices import processes
from gdistill.workdir import checkpoints
from gdistill.workdir import storage

_RETRY = 5.0  # seconds: a store's passing fault, or a disk that somebody is clearing


# ---- a folder of steps


def save_step(
  folder: epath.PathLike,
  step: int,
  tree: Any,
  meta: dict | None = None,
  keep: int = 3,
  watch: checkpoints.Watch = checkpoints.no_watch,
) -> dict:
  """Saves folder/<step>; once it is complete removes older steps beyond `keep`, and halves.

  `watch` as of `save`.
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
    except Exception as e:  # the new step is safe: no reason to end the run
      logging.warning('steps before %s/%s were not looked at: %s', folder, step, errors.brief(e))
  return stored


def _prune(folder: epath.Path, step: int, keep: int) -> None:
  """Removes complete steps before `step` beyond the newest `keep`, and what is half written."""
  steps = [s for s in _steps(folder) if s != step]
  # By a listing, which raises where the store cannot be reached: a step is not half for that.
  halves = [s for s in steps if 'manifest.json' not in storage.list_dir(folder / str(s))]
  older = [s for s in steps if s < step and checkpoints.is_complete(folder / str(s))]
  _remove_steps(folder, halves + older[: max(0, len(older) - keep)])


def _make_room(folder: epath.Path, step: int) -> None:
  """Removes all complete steps before `step` but the newest that is sound in every file."""
  older = [s for s in _steps(folder) if s < step and checkpoints.is_complete(folder / str(s))]
  for newest in reversed(older):
    one = folder / str(newest)
    if checkpoints.file_digests(one) == checkpoints.read_manifest(one)['files']:
      _remove_steps(folder, [s for s in older if s < newest])
      return


def _remove_steps(folder: epath.Path, steps: Iterable[int]) -> None:
  for s in steps:
    try:
      checkpoints.remove_checkpoint(folder / str(s))
    except Exception as e:  # what is newer is safe: no reason to end the run
      logging.warning('step %s/%s was not removed: %s', folder, s, errors.brief(e))


def _is_full(e: BaseException | None) -> bool:
  """Whether a disk or a quota is used up, at the bottom of it."""
  while e is not None:
    if getattr(e, 'errno', None) in (errno.ENOSPC, errno.EDQUOT):
      return True
    if os.strerror(errno.ENOSPC) in str(e):  # by other libraries' own errors
      return True
    e = e.__cause__
  return False


class Saver:
  """save_step in the background: `save` returns once the state is copied to this host.

  One save is under way at a time. What went wrong with it is raised by the next `check`, `save` or
  `wait`. Several processes save in the foreground, all together: their barriers would meet those
  of the training in another order.
  """

  def __init__(
    self, folder: epath.PathLike, keep: int, watch: checkpoints.Watch = checkpoints.no_watch
  ):
    self._folder, self._keep, self._watch = storage.path(folder), keep, watch
    self._thread = concurrent.futures.ThreadPoolExecutor(1, 'gdistill-save')
    self._pending: concurrent.futures.Future | None = None

  def __enter__(self) -> 'Saver':
    return self

  def __exit__(self, kind, *exc) -> None:
    self._thread.shutdown(wait=True)  # a save that is under way is not left half done
    try:
      self.wait()
    except Exception as e:
      if kind is None:
        raise
      logging.error('a save failed as well: %s', errors.brief(e))  # never hides what ended the run

  def save(self, step: int, tree: Any) -> None:
    self.wait()
    if jax.process_count() > 1:
      self._save_step(step, tree)
      return
    # Its own memory: the training goes on in the buffers that the tree has now, which a CPU shows
    # as they are.
    tree = jax.tree.map(lambda a: a if a.flags.owndata else a.copy(), jax.device_get(tree))
    self._pending = self._thread.submit(self._save, step, tree)

  def _save(self, step: int, tree: Any) -> None:
    try:
      self._save_step(step, tree)
    except errors.CheckpointError as e:
      logging.warning('the save of step %s is tried once more: %s', step, e)
      time.sleep(_RETRY)
      if _is_full(e):
        _make_room(self._folder, step)
      self._save_step(step, tree)

  def _save_step(self, step: int, tree: Any) -> None:
    save_step(self._folder, step, tree, keep=self._keep, watch=self._watch)

  def check(self) -> None:
    """Raises what went wrong with a save that has ended."""
    if self._pending is not None and self._pending.done():
      self.wait()

  def wait(self) -> None:
    """Returns when no save is under way."""
    pending, self._pending = self._pending, None
    if pending is not None:
      pending.result()


def restore_latest(
  folder: epath.PathLike, target: Any = None, shardings: Any = None
) -> tuple[int, Any, dict] | None:
  """(step, tree, meta) of the newest sound step; None where no step was ever completed.

  Damaged steps are set aside on the way, never removed. CheckpointError when none is sound, and
  at once when a sound one does not fit the target, which is no damage.
  """
  folder = storage.path(folder)
  rejected = _set_aside_before(folder)
  steps = _steps(folder)
  processes.barrier(f'{folder} is listed')
  for step in reversed(steps):
    one, damage, stored, arrays = folder / str(step), None, None, None
    if not storage.exists(one / 'manifest.json'):
      logging.warning('step %s is ignored: its save was not finished', one)
      continue
    try:
      stored = checkpoints.read_manifest(one)
      if stored['meta'].get('step') != step:
        raise checkpoints.Corrupt(
          'manifest', one, f'manifest.json is of step {stored["meta"].get("step")}'
        )
      checkpoints.compare(one, stored, target)
      arrays = checkpoints.read_arrays(one, stored)
    except checkpoints.Corrupt as e:
      damage = e
    if processes.any_process(damage is not None):
      damage = damage or checkpoints.Corrupt('elsewhere', one, 'damaged as seen by another process')
      rejected[str(step)] = damage.why
      if jax.process_index() == 0:
        _set_aside(folder, step, damage)
      continue
    return step, checkpoints.build_tree(one, arrays, target, shardings), stored['meta']
  if rejected:
    each = ', '.join(f'{name} ({why})' for name, why in rejected.items())
    raise errors.CheckpointError(
      f'{folder}: every step is damaged: {each}; restore one from a copy, '
      'or remove the folder to start this round afresh'
    )
  return None


def _steps(folder: epath.Path) -> list[int]:
  """The numbers of the steps that have not been set aside, ascending."""
  names = [n for n in storage.list_dir(folder) if n.isascii() and n.isdigit()]
  return sorted(int(n) for n in names if not storage.exists(folder / n / 'CORRUPT.json'))


def _set_aside_before(folder: epath.Path) -> dict[str, str]:
  found = {}
  for name in storage.list_dir(folder):
    if '.corrupt-' in name:
      found[name] = name.partition('.corrupt-')[2]
    elif storage.exists(folder / name / 'CORRUPT.json'):
      found[name] = 'CORRUPT.json says why'
  return found


def _set_aside(folder: epath.Path, step: int, damage: checkpoints.Corrupt) -> None:
  """Out of the way, with one line in the log; object stores cannot rename, so a marker there."""
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
    logging.warning('step %s stays where it is: %s', step, errors.brief(e))
