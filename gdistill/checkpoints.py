"""Checkpoints that are whole and verified leaf by leaf, or absent: Orbax, a manifest, a card."""

import concurrent.futures
import contextlib
import errno
import hashlib
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from gdistill import errors
from gdistill import state as states
from gdistill import storage
from gdistill.devices import processes

FORMAT_VERSION = 2
_RETRY = 5.0  # seconds: a store's passing fault, or a disk that somebody is clearing
_FOREIGN = ('.pt', '.pth', '.pkl', '.ckpt', '.bin', '.npz', '.h5', '.msgpack', '.safetensors')


# Raises where going on would do harm.
Watch = Callable[[], None]


def _nothing() -> None:
  pass


class _Corrupt(errors.CheckpointError):
  """Damage in the store, unlike a target that asks for something else; `why` names its kind."""

  def __init__(self, why: str, folder: epath.PathLike, message: str):
    super().__init__(f'{os.fspath(folder)}: {message}; restore the folder from a copy')
    self.why = why


# ---- one folder: arrays/ and manifest.json


def save(
  folder: epath.PathLike, tree: Any, *, meta: dict | None = None, watch: Watch = _nothing
) -> dict:
  """Writes folder/arrays, then manifest.json, which makes it complete; returns the manifest.

  Every process calls it with the same tree. NumericsError where a leaf is not finite;
  CheckpointError, and no folder left behind, where the save fails. `watch` is asked before the
  manifest, and raises where somebody else writes here now.
  """
  folder = storage.path(folder)
  arrays, leaves = _inspect(folder, tree)
  manifest = {
    'format_version': FORMAT_VERSION,
    'leaves': leaves,
    'meta': meta or {},
    'versions': {'jax': jax.__version__, 'orbax': ocp.__version__},
  }
  try:
    old = _manifest(folder)
    stored = old['leaves'] == leaves and _files(folder) == old['files']
  except errors.CheckpointError:
    stored = False
  try:
    if not stored:  # otherwise killed between this save and what was to follow it
      _remove(folder)
      _check_space(folder, leaves)
      _write_arrays(folder / 'arrays', arrays)
    watch()
    if jax.process_index() == 0:
      manifest['files'] = _files(folder)
      storage.write_bytes(folder / 'manifest.json', _sealed(manifest))
    processes.barrier(f'{folder} is complete')
    return _manifest(folder)
  except BaseException as e:
    if isinstance(e, errors.ConfigError):  # of `watch`: the folder is somebody else's
      raise
    if not stored:
      with contextlib.suppress(Exception):  # a full disk must not stay full of halves
        if jax.process_index() == 0:
          _remove_one(folder)
    if not isinstance(e, Exception):
      raise
    raise errors.CheckpointError(
      f'{folder} could not be saved: {errors.brief(e)}; free space or mend its permissions'
    ) from e


def restore(folder: epath.PathLike, target: Any = None, shardings: Any = None) -> Any:
  """The tree, every leaf verified; like `target`, or nested dicts of numpy arrays without one.

  Leaves are of the target's kind: numpy where it holds numpy, otherwise on its devices, or on
  `shardings` (one, or a tree of them). CheckpointError names the folder and the first leaf.
  """
  folder = storage.path(folder)
  stored = _manifest(folder)
  _compare(folder, stored, target)
  return _build(folder, _read_arrays(folder, stored), target, shardings)


def manifest(folder: epath.PathLike) -> dict | None:
  """The manifest; None where the folder is not complete."""
  try:
    return _manifest(storage.path(folder))
  except _Corrupt:
    return None


def is_complete(folder: epath.PathLike) -> bool:
  return manifest(folder) is not None


def tree_digest(stored: dict) -> str:
  """One digest over the names, shapes, dtypes and digests of all leaves of a manifest."""
  return _digest(stored['leaves'])


# ---- a folder of steps


def save_step(
  folder: epath.PathLike,
  step: int,
  tree: Any,
  meta: dict | None = None,
  keep: int = 3,
  watch: Watch = _nothing,
) -> dict:
  """Saves folder/<step>; once it is complete removes older steps beyond `keep`, and halves.

  `watch` as of `save`.
  """
  if keep < 1:
    raise errors.ConfigError(f'{keep=} must be at least 1')
  folder = storage.path(folder)
  stored = save(folder / str(step), tree, meta={**(meta or {}), 'step': step}, watch=watch)
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
  older = [s for s in steps if s < step and is_complete(folder / str(s))]
  _remove_steps(folder, halves + older[: max(0, len(older) - keep)])


def _make_room(folder: epath.Path, step: int) -> None:
  """Removes all complete steps before `step` but the newest that is sound in every file."""
  older = [s for s in _steps(folder) if s < step and is_complete(folder / str(s))]
  for newest in reversed(older):
    one = folder / str(newest)
    if _files(one) == _manifest(one)['files']:
      _remove_steps(folder, [s for s in older if s < newest])
      return


def _remove_steps(folder: epath.Path, steps: Iterable[int]) -> None:
  for s in steps:
    try:
      _remove_one(folder / str(s))
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

  def __init__(self, folder: epath.PathLike, keep: int, watch: Watch = _nothing):
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
      stored = _manifest(one)
      if stored['meta'].get('step') != step:
        raise _Corrupt('manifest', one, f'manifest.json is of step {stored["meta"].get("step")}')
      _compare(one, stored, target)
      arrays = _read_arrays(one, stored)
    except _Corrupt as e:
      damage = e
    if processes.any_process(damage is not None):
      damage = damage or _Corrupt('elsewhere', one, 'damaged as seen by another process')
      rejected[str(step)] = damage.why
      if jax.process_index() == 0:
        _set_aside(folder, step, damage)
      continue
    return step, _build(one, arrays, target, shardings), stored['meta']
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


def _set_aside(folder: epath.Path, step: int, damage: _Corrupt) -> None:
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


# ---- a round: params/ and card.json


def finish(folder: epath.PathLike, params: Any, card: dict) -> dict:
  """Saves folder/params, then card.json, which makes the round finished; returns the card."""
  folder = storage.path(folder)
  if is_finished(folder):
    done = read_card(folder)
    if done['params_digest'] != _digest(_inspect(folder, params)[1]):
      raise errors.CheckpointError(
        f'{folder} is finished, with other parameters; choose another folder or remove this one'
      )
    return done
  card = {**card, 'params_digest': tree_digest(save(folder / 'params', params))}
  if jax.process_index() == 0:
    storage.write_once(folder / 'card.json', _sealed(card))
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
  return _unseal(folder / 'card.json', 'card')


def params_digest(folder: epath.PathLike) -> str:
  """The digest of a finished round's parameters, which its card and its manifest agree on."""
  folder = storage.path(folder)
  wanted = read_card(folder).get('params_digest')
  if wanted != tree_digest(_manifest(folder / 'params')):
    raise _Corrupt('card', folder, 'card.json was written for other parameters than params/')
  return wanted


def read_params(folder: epath.PathLike, target: Any = None, shardings: Any = None) -> Any:
  params_digest(folder)
  return restore(storage.path(folder) / 'params', target, shardings)


# ---- leaves, digests, Orbax


def _inspect(folder: epath.Path, tree: Any) -> tuple[dict[str, Any], dict[str, dict]]:
  """What to write and what the manifest says of it, by name; refuses what cannot come back."""
  arrays, host, entries = {}, {}, {}
  for name, leaf in _named(folder, tree).items():
    try:
      array = _host(leaf)
    except Exception as e:
      raise errors.CheckpointError(f'{folder}: leaf {name!r} is no array: {errors.brief(e)}') from e
    if array.dtype.kind in 'OUSMm':
      raise errors.CheckpointError(
        f'{folder}: leaf {name!r} is {array.dtype}; put it in meta, or make it a number'
      )
    if jax.dtypes.issubdtype(array.dtype, np.inexact) and not np.isfinite(array).all():
      raise errors.NumericsError(
        f'{folder}: leaf {name!r} is not finite, so nothing was saved; '
        'go on from the last good step with a smaller learning rate'
      )
    # On a shared disk every process writes its own shards of what one of them cannot see, and
    # never holds more of the gathered ones than this.
    spread = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
    if spread and storage.is_local(folder):
      arrays[name], entries[name] = leaf, _leaf(array)
    else:
      arrays[name] = host[name] = array
  return arrays, entries | dict(zip(host, _each(_leaf, host.values()), strict=True))


def _each(function: Callable[[Any], Any], values: Iterable[Any]) -> list:
  """The values' results in their order, from a thread a core: sha256 lets go of Python's lock."""
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
    return list(threads.map(function, values))


def _leaf(array: np.ndarray) -> dict:
  """What the manifest says of a leaf."""
  raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
  return _entry(array.shape, array.dtype, hashlib.sha256(raw).hexdigest())


def _named(folder: epath.Path, tree: Any) -> dict[str, Any]:
  """{'params/down0_block0/conv1/kernel': leaf}, each name once."""
  leaves = {}
  for name, leaf in zip(states.names(tree), jax.tree.leaves(tree), strict=True):
    if name in leaves:
      raise errors.CheckpointError(f'{folder}: two leaves are named {name!r}; rename a key')
    leaves[name] = leaf
  for name in leaves:
    for i, c in enumerate(name):
      if c == '/' and name[:i] in leaves:
        raise errors.CheckpointError(f'{folder}: {name[:i]!r} is a leaf and a branch; rename it')
  return leaves


def _host(leaf: Any) -> np.ndarray:
  """The whole leaf, also when its shards live on several hosts."""
  if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
  return np.asarray(leaf)


def _entry(shape: tuple[int, ...], dtype: Any, digest: str) -> dict:
  return {'shape': list(shape), 'dtype': np.dtype(dtype).name, 'digest': digest}


def _write_arrays(folder: epath.Path, arrays: dict[str, Any]) -> None:
  # Orbax refuses arrays without elements; the manifest knows all there is to know of them.
  arrays = {name: array for name, array in arrays.items() if array.size}
  alone = not storage.is_local(folder)
  if jax.process_index() == 0 and not alone:
    folder.mkdir(parents=True, exist_ok=True)
  processes.barrier(f'{folder} is made')
  if arrays and (jax.process_index() == 0 or not alone):
    with _on_disk(folder) as disk:
      handler = ocp.PyTreeCheckpointHandler()
      handler.save(disk, args=ocp.args.PyTreeSave(arrays))
      if not alone:
        processes.barrier(f'{folder} is written')
      if jax.process_index() == 0:
        handler.finalize(disk)
        if alone:
          for name in storage.files(disk):
            storage.write_bytes(folder / name, storage.read_bytes(disk / name))
        storage.sync_tree(folder)


def _check_space(folder: epath.Path, leaves: dict[str, dict]) -> None:
  """OSError in all processes where one has no room for the leaves, before the first byte."""
  need, free = 0, math.inf
  if storage.is_local(folder):
    sizes = (math.prod(a['shape']) * jax.numpy.dtype(a['dtype']).itemsize for a in leaves.values())
    need, free = sum(sizes), storage.free(folder)
  if processes.any_process(free < need):
    raise OSError(errno.ENOSPC, f'{need:,} bytes are needed and {free:,} are free')


@contextlib.contextmanager
def _on_disk(folder: epath.Path) -> Iterator[epath.Path]:
  """Where Orbax works: the folder, or for an object store a local one that is copied as files.

  Orbax 0.12 turns s3://bucket into the relative path s3:/bucket, and its calls on other stores
  could not be tested: so they only ever see plain puts and gets, of this module.
  """
  if storage.is_local(folder):
    yield folder
  else:
    with tempfile.TemporaryDirectory(prefix='gdistill-') as scratch:
      yield storage.path(scratch)


def _files(folder: epath.Path) -> dict[str, dict]:
  arrays = folder / 'arrays'
  found = storage.files(arrays)
  digests = _each(lambda name: storage.digest(arrays / name), found)
  return {
    name: {'bytes': size, 'digest': digest}
    for (name, size), digest in zip(found.items(), digests, strict=True)
  }


def _read_arrays(folder: epath.Path, stored: dict) -> dict[str, np.ndarray]:
  """Every leaf on this host, equal to its digest."""
  found = storage.files(folder / 'arrays')
  for name, file in stored['files'].items():
    if name not in found:
      raise _Corrupt('missing-file', folder, f'arrays/{name} is missing')
    if found[name] != file['bytes']:
      size = f'{found[name]} bytes, not {file["bytes"]}'
      raise _Corrupt('size', folder, f'arrays/{name} has {size}')
  leaves = stored['leaves']
  written = [n for n, leaf in leaves.items() if 0 not in leaf['shape']]
  arrays = {}
  try:
    with _on_disk(folder / 'arrays') as disk:
      # Orbax is shown no damaged file: its threads outlive the parse error and raise later.
      if disk != folder / 'arrays':
        for name in stored['files']:
          storage.write_bytes(disk / name, storage.read_bytes(folder / 'arrays' / name))
      digests = _each(lambda name: storage.digest(disk / name), stored['files'])
      for digest, (name, file) in zip(digests, stored['files'].items(), strict=True):
        if digest != file['digest']:
          raise _Corrupt('digest', folder, f'arrays/{name} does not match its digest')
      if written:
        arrays = ocp.PyTreeCheckpointHandler().restore(
          disk,
          args=ocp.args.PyTreeRestore(
            item=dict.fromkeys(written, 0),
            restore_args={n: ocp.RestoreArgs(restore_type=np.ndarray) for n in written},
          ),
        )
  except _Corrupt:
    raise
  except errors.CheckpointError as e:
    if storage.is_local(folder):
      raise _Corrupt('unreadable', folder, errors.brief(e)) from e
    raise  # a store that cannot be reached has not lost anything
  except Exception as e:
    raise _Corrupt('unreadable', folder, f'Orbax cannot read arrays: {errors.brief(e)}') from e
  for name in leaves.keys() - set(written):
    arrays[name] = np.zeros(leaves[name]['shape'], leaves[name]['dtype'])
  arrays = {name: np.asarray(arrays[name]) for name in leaves}
  for (name, leaf), found in zip(leaves.items(), _each(_leaf, arrays.values()), strict=True):
    if found != leaf:
      raise _Corrupt('digest', folder, f'leaf {name!r} does not match its digest')
  return arrays


def _compare(folder: epath.Path, stored: dict, target: Any) -> None:
  """Names the first leaf in which the target wants something else; nothing is ever cast."""
  if target is None:
    return
  leaves = stored['leaves']
  wanted = _named(folder, target)
  remedy = 'use the model and optimiser it was saved with, or another folder'
  for name, leaf in wanted.items():
    if name not in leaves:
      raise errors.CheckpointError(f'{folder} has no leaf {name!r}; {remedy}')
    leaf = leaf if hasattr(leaf, 'dtype') else np.asarray(leaf)
    here, there = leaves[name], _entry(leaf.shape, leaf.dtype, '')
    for field in ('dtype', 'shape'):
      if here[field] != there[field]:
        raise errors.CheckpointError(
          f'{folder}: leaf {name!r} has {field} {here[field]} and {there[field]} is wanted '
          f'({here["dtype"]}{here["shape"]}, {there["dtype"]}{there["shape"]}); {remedy}'
        )
  extra = sorted(set(leaves) - set(wanted))
  if extra:
    raise errors.CheckpointError(
      f'{folder} has a leaf {extra[0]!r} ({len(extra)} in all) that is not wanted; {remedy}'
    )


def _build(folder: epath.Path, arrays: dict[str, np.ndarray], target: Any, shardings: Any) -> Any:
  if target is None:
    tree = {}
    for name, array in arrays.items():
      node = tree
      *branches, last = name.split('/')
      for branch in branches:
        node = node.setdefault(branch, {})
      node[last] = array
    target = tree
  wanted, treedef = _named(folder, target), jax.tree.structure(target)
  if shardings is None:
    places = [getattr(like, 'sharding', None) for like in wanted.values()]
  elif isinstance(shardings, jax.sharding.Sharding):
    places = [shardings] * len(wanted)
  else:
    places = treedef.flatten_up_to(shardings)
  return treedef.unflatten(
    _place(folder, name, arrays[name], like, place)
    for (name, like), place in zip(wanted.items(), places, strict=True)
  )


def _place(folder: epath.Path, name: str, array: np.ndarray, like: Any, place: Any) -> Any:
  if place is None:
    if not isinstance(like, (jax.Array, jax.ShapeDtypeStruct)):
      return array
    placed = jax.numpy.array(array)
  else:
    # Every process holds the whole leaf; each shard gets a buffer of its own, since a donated
    # state whose replicas share memory is a crash.
    placed = jax.make_array_from_callback(array.shape, place, lambda i: np.array(array[i]))
  if placed.dtype != array.dtype:
    raise errors.CheckpointError(
      f'{folder}: leaf {name!r} would be cast from {array.dtype} to {placed.dtype}; '
      'set jax_enable_x64 as in the run that saved it'
    )
  return placed


def _manifest(folder: epath.Path) -> dict:
  file = folder / 'manifest.json'
  if not storage.exists(file):
    raise _Corrupt('incomplete', folder, 'there is no manifest.json: a save that did not end')
  stored = _unseal(file, 'manifest')
  if stored.get('format_version') != FORMAT_VERSION:
    raise errors.CheckpointError(
      f'{folder} has format_version {stored.get("format_version")}, this program reads '
      f'{FORMAT_VERSION}; use the version of gdistill that wrote it'
    )
  return stored


def _digest(value: Any) -> str:
  return hashlib.sha256(storage.dumps(value).encode()).hexdigest()


def _sealed(value: dict) -> bytes:
  """JSON with a digest of itself: a flipped bit in it is found like one in an array."""
  return storage.dumps({**value, 'digest': _digest(value)}).encode()


def _unseal(file: epath.Path, why: str) -> dict:
  try:
    data = storage.read_bytes(file)
  except errors.CheckpointError as e:
    if storage.is_local(file):
      raise _Corrupt('unreadable', file.parent, errors.brief(e)) from e
    raise  # a store that cannot be reached has not lost anything
  try:
    value = json.loads(data)
    value.pop('digest', None)
    if data != _sealed(value):
      raise ValueError('it does not match its own digest')
  except Exception as e:
    raise _Corrupt(why, file.parent, f'{file.name} cannot be trusted: {errors.brief(e)}') from e
  return value


def _remove(folder: epath.Path) -> None:
  processes.barrier(f'{folder} is left')
  if jax.process_index() == 0:
    _remove_one(folder)
  processes.barrier(f'{folder} is gone')


def _remove_one(folder: epath.Path) -> None:
  storage.remove(folder / 'manifest.json')  # first: half a removal is no damaged checkpoint
  storage.remove_tree(folder)
