"""One checkpoint, whole and verified leaf by leaf, or absent: Orbax arrays and a manifest."""

import concurrent.futures
import contextlib
import errno
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from gdistill import errors
from gdistill.devices import processes
from gdistill.workdir import state as states
from gdistill.workdir import storage

FORMAT_VERSION = 2


# Raises where going on would do harm.
Watch = Callable[[], None]


def no_watch() -> None:
  pass


class Corrupt(errors.CheckpointError):
  """Damage in the store, unlike a target that asks for something else; `why` names its kind."""

  def __init__(self, why: str, folder: epath.PathLike, message: str):
    super().__init__(f'{os.fspath(folder)}: {message}; restore the folder from a copy')
    self.why = why


# ---- one folder: arrays/ and manifest.json


def save(
  folder: epath.PathLike, tree: Any, *, meta: dict | None = None, watch: Watch = no_watch
) -> dict:
  """Writes folder/arrays, then manifest.json, which makes it complete; returns the manifest.

  Every process calls it with the same tree. NumericsError where a leaf is not finite;
  CheckpointError, and no folder left behind, where the save fails. `watch` is asked before the
  manifest, and raises where somebody else writes here now.
  """
  folder = storage.path(folder)
  arrays, leaves = inspect(folder, tree)
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
    if not stored:  # otherwise killed between this save and what was to follow it
      _remove(folder)
      _check_space(folder, leaves)
      _write_arrays(folder / 'arrays', arrays)
    watch()
    if jax.process_index() == 0:
      manifest['files'] = file_digests(folder)
      storage.write_bytes(folder / 'manifest.json', sealed(manifest))
    processes.barrier(f'{folder} is complete')
    return read_manifest(folder)
  except BaseException as e:
    if isinstance(e, errors.ConfigError):  # of `watch`: the folder is somebody else's
      raise
    if not stored:
      with contextlib.suppress(Exception):  # a full disk must not stay full of halves
        if jax.process_index() == 0:
          remove_checkpoint(folder)
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
  stored = read_manifest(folder)
  compare(folder, stored, target)
  return build_tree(folder, read_arrays(folder, stored), target, shardings)


def manifest(folder: epath.PathLike) -> dict | None:
  """The manifest; None where the folder is not complete."""
  try:
    return read_manifest(storage.path(folder))
  except Corrupt:
    return None


def is_complete(folder: epath.PathLike) -> bool:
  return manifest(folder) is not None


def tree_digest(stored: dict) -> str:
  """One digest over the names, shapes, dtypes and digests of all leaves of a manifest."""
  return digest_of(stored['leaves'])


# ---- leaves, digests, Orbax


def inspect(folder: epath.Path, tree: Any) -> tuple[dict[str, Any], dict[str, dict]]:
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


def file_digests(folder: epath.Path) -> dict[str, dict]:
  arrays = folder / 'arrays'
  found = storage.files(arrays)
  digests = _each(lambda name: storage.digest(arrays / name), found)
  return {
    name: {'bytes': size, 'digest': digest}
    for (name, size), digest in zip(found.items(), digests, strict=True)
  }


def read_arrays(folder: epath.Path, stored: dict) -> dict[str, np.ndarray]:
  """Every leaf on this host, equal to its digest."""
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
      # Orbax is shown no damaged file: its threads outlive the parse error and raise later.
      if disk != folder / 'arrays':
        for name in stored['files']:
          storage.write_bytes(disk / name, storage.read_bytes(folder / 'arrays' / name))
      digests = _each(lambda name: storage.digest(disk / name), stored['files'])
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
    if storage.is_local(folder):
      raise Corrupt('unreadable', folder, errors.brief(e)) from e
    raise  # a store that cannot be reached has not lost anything
  except Exception as e:
    raise Corrupt('unreadable', folder, f'Orbax cannot read arrays: {errors.brief(e)}') from e
  for name in leaves.keys() - set(written):
    arrays[name] = np.zeros(leaves[name]['shape'], leaves[name]['dtype'])
  arrays = {name: np.asarray(arrays[name]) for name in leaves}
  for (name, leaf), found in zip(leaves.items(), _each(_leaf, arrays.values()), strict=True):
    if found != leaf:
      raise Corrupt('digest', folder, f'leaf {name!r} does not match its digest')
  return arrays


def compare(folder: epath.Path, stored: dict, target: Any) -> None:
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


def build_tree(
  folder: epath.Path, arrays: dict[str, np.ndarray], target: Any, shardings: Any
) -> Any:
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


def read_manifest(folder: epath.Path) -> dict:
  file = folder / 'manifest.json'
  if not storage.exists(file):
    raise Corrupt('incomplete', folder, 'there is no manifest.json: a save that did not end')
  stored = unseal(file, 'manifest')
  if stored.get('format_version') != FORMAT_VERSION:
    raise errors.CheckpointError(
      f'{folder} has format_version {stored.get("format_version")}, this program reads '
      f'{FORMAT_VERSION}; use the version of gdistill that wrote it'
    )
  return stored


def digest_of(value: Any) -> str:
  return hashlib.sha256(storage.dumps(value).encode()).hexdigest()


def sealed(value: dict) -> bytes:
  """JSON with a digest of itself: a flipped bit in it is found like one in an array."""
  return storage.dumps({**value, 'digest': digest_of(value)}).encode()


def unseal(file: epath.Path, why: str) -> dict:
  try:
    data = storage.read_bytes(file)
  except errors.CheckpointError as e:
    if storage.is_local(file):
      raise Corrupt('unreadable', file.parent, errors.brief(e)) from e
    raise  # a store that cannot be reached has not lost anything
  try:
    value = json.loads(data)
    value.pop('digest', None)
    if data != sealed(value):
      raise ValueError('it does not match its own digest')
  except Exception as e:
    raise Corrupt(why, file.parent, f'{file.name} cannot be trusted: {errors.brief(e)}') from e
  return value


def _remove(folder: epath.Path) -> None:
  processes.barrier(f'{folder} is left')
  if jax.process_index() == 0:
    remove_checkpoint(folder)
  processes.barrier(f'{folder} is gone')


def remove_checkpoint(folder: epath.Path) -> None:
  storage.remove(folder / 'manifest.json')  # first: half a removal is no damaged checkpoint
  storage.remove_tree(folder)
