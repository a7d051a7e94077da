"""Names the leaves of a tree, describes each leaf for a manifest, and builds a tree from leaves."""

import concurrent.futures
import hashlib
import os
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from gdistill import errors
from gdistill.workdir import state as states
from gdistill.workdir import storage


def collect(folder: epath.Path, tree: Any) -> tuple[dict[str, Any], dict[str, dict]]:
  """Returns ({name: array to write to the folder}, {name: manifest entry}) of a tree's leaves.

  Raises CheckpointError if a leaf is not a number or an array of numbers, or if the names of two
  leaves collide. Raises NumericsError if a leaf is not finite.
  """
  arrays, host, entries = {}, {}, {}
  for name, leaf in _by_name(folder, tree).items():
    try:
      array = _gathered(leaf)
    except Exception as e:
      raise errors.CheckpointError(
        f'{folder}: leaf {name!r} is not an array: {errors.brief(e)}; save only arrays of numbers'
      ) from e
    if array.dtype.kind in 'OUSMm':
      raise errors.CheckpointError(
        f'{folder}: leaf {name!r} has dtype {array.dtype}; put the value in meta, or save a number'
      )
    if jax.dtypes.issubdtype(array.dtype, np.inexact) and not np.isfinite(array).all():
      raise errors.NumericsError(
        f'{folder}: leaf {name!r} is not finite, so nothing was saved; '
        'train in another workdir with a lower lr'
      )
    # If a leaf has shards on several hosts, and the hosts share the disk, every process writes its
    # own shards. The gathered array then serves only for the digest, and is freed immediately.
    spread = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
    if spread and storage.is_local(folder):
      arrays[name], entries[name] = leaf, entry(array)
    else:
      arrays[name] = host[name] = array
  return arrays, entries | dict(zip(host, in_threads(entry, host.values()), strict=True))


def entry(array: np.ndarray) -> dict:
  """Returns the manifest entry of a leaf: {'shape', 'dtype', 'digest'}."""
  raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
  return {**_kind(array), 'digest': hashlib.sha256(raw).hexdigest()}


def in_threads(function: Callable[[Any], Any], values: Iterable[Any]) -> list:
  """Returns [function(value) for value in values], computed in one thread per CPU core.

  Threads help despite Python's global interpreter lock, because sha256 releases that lock.
  """
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
    return list(threads.map(function, values))


def check_target(folder: epath.Path, entries: dict[str, dict], target: Any) -> None:
  """Raises CheckpointError for the first leaf whose name, dtype or shape differs from `target`."""
  if target is None:
    return
  wanted = _by_name(folder, target)
  remedy = 'use the model and optimiser of that checkpoint, or another folder'
  for name, leaf in wanted.items():
    if name not in entries:
      raise errors.CheckpointError(f'{folder} has no leaf {name!r}; {remedy}')
    here, there = entries[name], _kind(leaf if hasattr(leaf, 'dtype') else np.asarray(leaf))
    for field in ('dtype', 'shape'):
      if here[field] != there[field]:
        raise errors.CheckpointError(
          f'{folder}: leaf {name!r} has {field} {here[field]} and {there[field]} is expected '
          f'({here["dtype"]}{here["shape"]}, {there["dtype"]}{there["shape"]}); {remedy}'
        )
  extra = sorted(set(entries) - set(wanted))
  if extra:
    raise errors.CheckpointError(
      f'{folder} has a leaf {extra[0]!r} ({len(extra)} in all) that is not expected; {remedy}'
    )


def build(folder: epath.Path, arrays: dict[str, np.ndarray], target: Any, shardings: Any) -> Any:
  """Returns the arrays as a tree like `target`, or as nested dicts if `target` is None.

  Each array is placed on devices as the docstring of `checkpoints.restore` says.
  """
  if target is None:
    target = {}
    for name, array in arrays.items():
      node = target
      *branches, last = name.split('/')
      for branch in branches:
        node = node.setdefault(branch, {})
      node[last] = array
  wanted, treedef = _by_name(folder, target), jax.tree.structure(target)
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


def _by_name(folder: epath.Path, tree: Any) -> dict[str, Any]:
  """Returns {name: leaf} of a tree, with names such as 'params/down0_block0/conv1/kernel'.

  Raises CheckpointError if the names of two leaves collide.
  """
  leaves = {}
  for name, leaf in zip(states.names(tree), jax.tree.leaves(tree), strict=True):
    if name in leaves:
      raise errors.CheckpointError(f'{folder}: two leaves are named {name!r}; rename one leaf')
    leaves[name] = leaf
  for name in leaves:
    for i, c in enumerate(name):
      if c == '/' and name[:i] in leaves:
        raise errors.CheckpointError(
          f'{folder}: {name[:i]!r} is the name of a leaf and of a branch; rename the leaf'
        )
  return leaves


def _gathered(leaf: Any) -> np.ndarray:
  """Returns the whole leaf as a numpy array, gathered if its shards are on several hosts."""
  if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
  return np.asarray(leaf)


def _kind(leaf: Any) -> dict:
  return {'shape': list(leaf.shape), 'dtype': np.dtype(leaf.dtype).name}


def _place(folder: epath.Path, name: str, array: np.ndarray, like: Any, place: Any) -> Any:
  """Returns `array` with the sharding `place`.

  If `place` is None, returns a numpy array where `like` is a numpy array, else a JAX array.
  """
  if place is None:
    if not isinstance(like, (jax.Array, jax.ShapeDtypeStruct)):
      return array
    placed = jax.numpy.array(array)
  else:
    # Each shard is a copy of a part of `array`, because JAX crashes if a donated state has replicas
    # that share memory.
    placed = jax.make_array_from_callback(array.shape, place, lambda i: np.array(array[i]))
  if placed.dtype != array.dtype:
    raise errors.CheckpointError(
      f'{folder}: leaf {name!r} would be cast from {array.dtype} to {placed.dtype}; '
      'set jax_enable_x64 as in the run that saved the checkpoint'
    )
  return placed
