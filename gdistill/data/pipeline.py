"""Makes batches as a pure function of (seed, step), so a run resumes without a saved iterator."""

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

# Maps a recipe's data.name to a function: load(settings, picture shape) returns (training, held
# out).
_LOAD = {
  'digits': digits.load,
  'folder': folder.load,
  'records': records.load,
  'tfds': tfds.load,
  'captions': captions.load,
  'webdataset': captions.load,
  'tfds_captions': captions.load,
}


@functools.lru_cache(maxsize=2)
def load(
  settings: recipes.Data, shape: tuple[int, int, int]
) -> tuple[source.Source, source.Source]:
  """Returns the two data sets of the recipe as `source.Source`: (training, held out).

  `load` reads pictures only of the data set 'digits' or of an archive: these pictures are kept in
  memory.
  """
  return _LOAD[settings.name](settings, shape)


def batch(
  data: source.Source, seed: tuple[int, ...], step: int, size: int, rows: np.ndarray | None = None
) -> dict:
  """Returns the batch of step `step`: the arrays of `data.gather`, and 'id', the row numbers.

  `rows` selects rows of the batch, because every host reads only its own rows; None selects all
  rows. With n examples, row r of step k has the position p = k size + r in an endless sequence of
  random permutations of the examples: entry p mod n of permutation p div n, so that all examples
  are seen equally often.
  """
  n = len(data)
  if n < size:
    raise errors.DataError(
      f'{n} training examples are fewer than one batch of {size}; set a smaller batch_size, '
      f'at most {n}'
    )
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
  """A sequence of the batches of steps `first` to `last` - 1; Grain reads the items in parallel."""

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
  """Returns a function read(step), which returns the `batch` of any step below `steps`.

  Each of `settings.workers` processes reads `settings.prefetch` batches ahead, in at most
  `settings.threads` threads. With settings.workers=0, threads of the main process read ahead.
  """
  if data.in_memory:
    return lambda step: batch(data, seed, step, size, rows)
  import grain  # imported only here: Grain loads slowly, and data in memory needs no Grain
  from absl import flags

  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # absl flags, which Grain reads, raise an error if not parsed

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
        f'data.workers={settings.workers}: a worker process died: the machine ran out of memory '
        f'or a picture crashed its decoder ({errors.brief(e)}); set a smaller '
        'data.workers, or data.workers=0 to read in threads of the main process'
      ) from e

  # finalize also runs at exit, so Grain's iterator is closed before Python unloads its modules.
  weakref.finalize(read, close)
  return read


def _start_worker(index: int, count: int) -> None:
  del index, count
  worker.start()
