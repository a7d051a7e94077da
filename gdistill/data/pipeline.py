"""Batches as a pure function of (seed, step): there is no iterator to lose."""

import contextlib
import dataclasses
import functools
import weakref
from collections.abc import Callable

import numpy as np

from gdistill import errors
from gdistill.data import captions
from gdistill.data import digits
from gdistill.data import folder
from gdistill.data import records
from gdistill.data import source
from gdistill.data import tfds
from gdistill.data import worker
from gdistill.recipe import settings as recipes

# name -> load(settings, shape of an image) -> (training, held out)
_LOAD = {
  'digits': digits.load,
  'folder': folder.load,
  'records': records.load,
  'tfds': tfds.load,
  'captions': captions.load_pixels,
  'webdataset': captions.load_pixels,
  'tfds_captions': captions.load_pixels,
}


@functools.lru_cache(maxsize=2)
def load(
  settings: recipes.Data, shape: tuple[int, int, int]
) -> tuple[source.Source, source.Source]:
  """(training, held out); lists the data and reads no picture, unless they lie in memory."""
  return _LOAD[settings.name](settings, shape)


def batch(
  data: source.Source, seed: tuple[int, ...], step: int, size: int, rows: np.ndarray | None = None
) -> dict:
  """The batch of a step: 'pixels', 'label', and 'id', each example's place in the batch.

  `rows` asks for those places alone: every host reads its own. Examples are dealt from one
  permutation after another: place p of the endless deal is entry p mod n of permutation p div n,
  so every example is seen equally often.
  """
  n = len(data)
  if n < size:
    raise errors.DataError(f'{n} training examples are fewer than one batch of {size}')
  rows = np.arange(size) if rows is None else rows
  place = step * size + rows.astype(np.int64)
  index = np.empty(len(rows), np.int64)
  for epoch in range(place[0] // n, place[-1] // n + 1):
    here = place // n == epoch
    index[here] = _permutation(n, seed, epoch)[place[here] % n]
  return {**data.gather(index), 'id': rows.astype(np.int32)}


@functools.lru_cache(maxsize=4)
def _permutation(n: int, seed: tuple[int, ...], epoch: int) -> np.ndarray:
  return np.random.default_rng((*seed, epoch)).permutation(n)


@dataclasses.dataclass(frozen=True, eq=False)
class _Batches:
  """Batch `first` + k at k, to be asked for in any order by threads and worker processes."""

  data: source.Source
  seed: tuple[int, ...]
  size: int
  rows: np.ndarray
  first: int
  last: int

  def __len__(self) -> int:
    return self.last - self.first

  def __getitem__(self, k: int) -> dict:
    return batch(self.data, self.seed, self.first + k, self.size, self.rows)


def reader(
  data: source.Source,
  seed: tuple[int, ...],
  size: int,
  rows: np.ndarray,
  steps: int,
  settings: recipes.Data,
) -> Callable[[int], dict]:
  """`read(step)` returns `batch(data, seed, step, size, rows)` for steps below `steps`.

  Asked for in order it has read ahead: `settings.prefetch` batches, one a thread in at most
  `settings.threads` threads, in each of `settings.workers` processes (0: in this one).
  """
  if data.in_memory:
    return lambda step: batch(data, seed, step, size, rows)
  import grain  # heavy, and embedded data does without it
  from absl import flags

  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # Grain's workers ask for flags, which only absl.app parses

  def start(step):
    threads = grain.ReadOptions(min(settings.threads, settings.prefetch), settings.prefetch)
    found = grain.MapDataset.source(_Batches(data, seed, size, rows, step, steps))
    found = found.to_iter_dataset(threads)
    if settings.workers and not data.heavy:
      options = grain.MultiprocessingOptions(settings.workers, settings.prefetch)
      found = found.mp_prefetch(options, _start_worker)
    return iter(found)

  ahead, expected = None, -1

  def close():
    nonlocal ahead
    if ahead is not None:
      ahead.close()
    ahead = None

  def read(step):
    nonlocal ahead, expected
    started = step == expected
    if not started:
      close()
      ahead = start(step)
    expected = step + 1
    try:
      with contextlib.nullcontext() if started else worker.unsignalled():
        return next(ahead)
    except RuntimeError as e:
      if 'process was terminated' not in str(e):
        raise
      raise errors.DataError(
        f'data.workers={settings.workers}: one of them died, by lack of memory or over a picture '
        f'that crashed its decoder ({errors.brief(e)}); set fewer of them, or 0'
      ) from e

  weakref.finalize(read, close)  # at exit, too: before what it needs is gone
  return read


def _start_worker(index: int, count: int) -> None:
  del index, count
  worker.start()
