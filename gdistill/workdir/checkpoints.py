"""Saves and restores one checkpoint: arrays in Orbax files, and a manifest with digests."""

import contextlib
import errno
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from gdistill import errors
from gdistill.devices import processes
from gdistill.workdir import leaves as tree_leaves
from gdistill.workdir import storage

FORMAT_VERSION = 2

# Type of a function that raises ConfigError if this process must not write to the workdir any more.
Watch = Callable[[], None]


class Corrupt(errors.CheckpointError):
  """Raised if a file of a checkpoint, or card.json, is damaged; `why` is the kind of damage."""

  def __init__(self, why: str, folder: epath.PathLike, message: str):
    super().__init__(f'{os.fspath(folder)}: {message}; restore the folder from a copy')
    self.why = why


def save(
  folder: epath.PathLike, tree: Any, *, meta: dict | None = None, watch: Watch = lambda: None
) -> dict:
  """Writes folder/arrays, then manifest.json, which completes the checkpoint; returns the manifest.

  Every process must call `save` with the same tree. `watch()` is called before the manifest is
  written, and raises ConfigError if another process has taken the workdir's lock. Raises
  NumericsError if a leaf is not finite. If writing fails, `save` removes the incomplete checkpoint
  and raises CheckpointError.
  """
  folder = storage.path(folder)
  arrays, leaves = tree_leaves.collect(folder, tree)
  manifest = {
    'format_version': FORMAT_VERSION,
    'leaves': leaves,
    'meta': meta or {},
    'versions': {'jax': jax.__version__, 'orbax': ocp.__version__},
  }
  try:
    old = read_manifest(folder)
    stored = old['leaves'] == leaves and file_digests(folder) == old['files']
  except errors.CheckpointError:
    stored = False
  try:
    if not stored:  # a resumed run may save a step that is saved already
      _remove_together(folder)
      _check_space(folder, leaves)
      _write_arrays(folder / 'arrays', arrays)
    watch()
    if jax.process_index() == 0:
      manifest['files'] = file_digests(folder)
      storage.write_bytes(folder / 'manifest.json', seal(manifest))
    processes.barrier(f'{folder} is complete')
    return read_manifest(folder)
  except BaseException as e:
    if isinstance(e, errors.ConfigError):  # `watch` raised: another process has the lock
      raise
    if not stored:
      with contextlib.suppress(Exception):  # an incomplete checkpoint would waste disk space
        if jax.process_index() == 0:
          remove(folder)
    if not isinstance(e, Exception):
      raise
    advice = '' if isinstance(e, errors.CheckpointError) else f'; {errors.write_advice(e)}'
    raise errors.CheckpointError(f'{folder} could not be saved: {errors.brief(e)}{advice}') from e


def restore(folder: epath.PathLike, target: Any = None, shardings: Any = None) -> Any:
  """Returns the stored tree, with the structure of `target`, after checking every leaf's digest.

  Without a target the tree is nested dicts of numpy arrays. With `shardings` (one sharding, or a
  tree of shardings) every leaf is placed as the sharding says. Without shardings, a leaf is a numpy
  array if the target's leaf is a numpy array or a number, and otherwise is placed on the devices of
  the target's leaf. No leaf is cast to another dtype. Raises CheckpointError if a leaf is
  damaged or does not fit the target.
  """
  folder = storage.path(folder)
  stored = read_manifest(folder)
  tree_leaves.check_target(folder, stored['leaves'], target)
  return tree_leaves.build(folder, read_arrays(folder, stored), target, shardings)


def manifest(folder: epath.PathLike) -> dict | None:
  """Returns the manifest of a complete checkpoint; None if the manifest is missing or damaged."""
  try:
    return read_manifest(storage.path(folder))
  except Corrupt:
    return None


def is_complete(folder: epath.PathLike) -> bool:
  """Returns whether the folder holds a valid manifest, which `save` writes last."""
  return manifest(folder) is not None


def tree_digest(stored: dict) -> str:
  """Returns one digest over the names, shapes, dtypes and digests of all leaves of a manifest."""
  return json_digest(stored['leaves'])


def read_manifest(folder: epath.Path) -> dict:
  """Returns the manifest; raises Corrupt if the manifest is missing or damaged."""
  file = folder / 'manifest.json'
  if not storage.exists(file):
    raise Corrupt('incomplete', folder, 'there is no manifest.json, so its save was not finished')
  stored = read_sealed(file, 'manifest')
  if stored.get('format_version') != FORMAT_VERSION:
    raise errors.CheckpointError(
      f'{folder} has format_version {stored.get("format_version")}, and this gdistill reads only '
      f'{FORMAT_VERSION}; use the version of gdistill that wrote the folder'
    )
  return stored


def file_digests(folder: epath.Path) -> dict[str, dict]:
  """Returns {file name: {'bytes': size, 'digest': sha256}} of the files in folder/arrays."""
  arrays = folder / 'arrays'
  found = storage.files(arrays)
  digests = tree_leaves.in_threads(lambda name: storage.digest(arrays / name), found)
  return {
    name: {'bytes': size, 'digest': digest}
    for (name, size), digest in zip(found.items(), digests, strict=True)
  }


def read_arrays(folder: epath.Path, stored: dict) -> dict[str, np.ndarray]:
  """Returns {leaf name: numpy array}; raises Corrupt if a file or a leaf has changed."""
  found = storage.files(folder / 'arrays')
  for name, file in stored['files'].items():
    if name not in found:
      raise Corrupt('missing-file', folder, f'arrays/{name} is missing')
    if found[name] != file['bytes']:
      size = f'{found[name]} bytes, not {file["bytes"]}'
      raise Corrupt('size', folder, f'arrays/{name} has {size}')
  leaves = stored['leaves']
  written = [n for n, leaf in leaves.items() if 0 not in leaf['shape']]
  arrays = {}
  try:
    with _on_disk(folder / 'arrays') as disk:
      if disk != folder / 'arrays':
        for name in stored['files']:
          storage.write_bytes(disk / name, storage.read_bytes(folder / 'arrays' / name))
      # All digests are checked before Orbax reads a file: after an error in a damaged file, Orbax's
      # threads keep running and raise later.
      digests = tree_leaves.in_threads(lambda name: storage.digest(disk / name), stored['files'])
      for digest, (name, file) in zip(digests, stored['files'].items(), strict=True):
        if digest != file['digest']:
          raise Corrupt('digest', folder, f'arrays/{name} does not match its digest')
      if written:
        arrays = ocp.PyTreeCheckpointHandler().restore(
          disk,
          args=ocp.args.PyTreeRestore(
            item=dict.fromkeys(written, 0),
            restore_args={n: ocp.RestoreArgs(restore_type=np.ndarray) for n in written},
          ),
        )
  except Corrupt:
    raise
  except errors.CheckpointError as e:
    _raise_unreadable(folder, e)
  except Exception as e:
    raise Corrupt('unreadable', folder, f'Orbax cannot read arrays: {errors.brief(e)}') from e
  for name in leaves.keys() - set(written):
    arrays[name] = np.zeros(leaves[name]['shape'], leaves[name]['dtype'])
  arrays = {name: np.asarray(arrays[name]) for name in leaves}
  entries = tree_leaves.in_threads(tree_leaves.entry, arrays.values())
  for (name, leaf), entry in zip(leaves.items(), entries, strict=True):
    if entry != leaf:
      raise Corrupt('digest', folder, f'leaf {name!r} does not match its digest')
  return arrays


def remove(folder: epath.Path) -> None:
  """Removes a checkpoint, and removes the checkpoint's manifest first.

  A folder without a manifest counts as incomplete, should the process be killed in between.
  """
  storage.remove(folder / 'manifest.json')
  storage.remove_tree(folder)


# ---- JSON files that contain their own digest: manifest.json, and card.json of a finished round


def json_digest(value: Any) -> str:
  """Returns the sha256 of the value's canonical JSON in hex digits."""
  return hashlib.sha256(storage.dumps(value).encode()).hexdigest()


def seal(value: dict) -> bytes:
  """Returns the value as JSON that contains a digest of the value, to detect changed bytes."""
  return storage.dumps({**value, 'digest': json_digest(value)}).encode()


def read_sealed(file: epath.Path, why: str) -> dict:
  """Returns the value in a file made by `seal`; raises Corrupt(`why`) if the file has changed."""
  try:
    data = storage.read_bytes(file)
  except errors.CheckpointError as e:
    _raise_unreadable(file.parent, e)
  try:
    value = json.loads(data)
    value.pop('digest', None)
    if data != seal(value):
      raise ValueError('the contents do not match the digest in the file')
  except Exception as e:
    raise Corrupt(why, file.parent, f'{file.name} cannot be trusted: {errors.brief(e)}') from e
  return value


def _raise_unreadable(folder: epath.Path, e: errors.CheckpointError) -> NoReturn:
  """Raises Corrupt for a local folder, but `e` for an object store, which may be unreachable."""
  if storage.is_local(folder):
    raise Corrupt('unreadable', folder, errors.brief(e)) from e
  raise e


# ---- Orbax


def _write_arrays(folder: epath.Path, arrays: dict[str, Any]) -> None:
  # Arrays without elements are not written, because Orbax refuses arrays without elements, and the
  # manifest's shapes and dtypes are enough to restore such arrays.
  arrays = {name: array for name, array in arrays.items() if array.size}
  alone = not storage.is_local(folder)  # in an object store, process 0 writes all arrays
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


@contextlib.contextmanager
def _on_disk(folder: epath.Path) -> Iterator[epath.Path]:
  """Yields a local folder for Orbax: `folder`, or a temporary folder for an object store.

  The caller copies the files between the temporary folder and the object store. Orbax never gets
  the path of an object store, because Orbax 0.12 turns s3://bucket into the relative path
  s3:/bucket, and Orbax on other object stores could not be tested.
  """
  if storage.is_local(folder):
    yield folder
  else:
    with tempfile.TemporaryDirectory(prefix='gdistill-') as scratch:
      yield storage.path(scratch)


def _check_space(folder: epath.Path, leaves: dict[str, dict]) -> None:
  """Raises OSError in every process if one process has too little disk space for the leaves."""
  need, free = 0, math.inf
  if storage.is_local(folder):
    sizes = (math.prod(a['shape']) * jax.numpy.dtype(a['dtype']).itemsize for a in leaves.values())
    need, free = sum(sizes), storage.free(folder)
  if processes.any_process(free < need):
    raise OSError(errno.ENOSPC, f'{need:,} bytes are needed and {free:,} are free')


def _remove_together(folder: epath.Path) -> None:
  """Removes a checkpoint once every process has called `_remove_together`; all processes wait."""
  processes.barrier(f'{folder} is left')
  if jax.process_index() == 0:
    remove(folder)
  processes.barrier(f'{folder} is gone')
