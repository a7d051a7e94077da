"""Samples and measures the pictures of missing cells of the grid, on all devices and hosts."""

import concurrent.futures
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from gdistill import errors
from gdistill.devices import processes
from gdistill.drawing import sampling
from gdistill.evaluation.features import extractors
from gdistill.evaluation.figures import measure
from gdistill.evaluation.grid import cell_store
from gdistill.evaluation.grid import cells as grid_cells
from gdistill.process import interrupt
from gdistill.process import progress
from gdistill.rounds import folder as folders
from gdistill.workdir import storage

_NOTHING, _MEASURE, _DRAW = range(3)  # the work that a cell still needs


@dataclasses.dataclass(frozen=True, eq=False)
class Drawing:
  """The settings by which the pictures of every cell of the grid are sampled and stored."""

  images: int  # number of pictures sampled for each cell
  batch_size: int
  keep_images: int  # number of pictures of each cell that are stored in the workdir
  num_classes: int
  prompts: list[str]  # prompts that pictures are sampled for; empty if the model reads no text
  picture_shape: tuple[int, int, int]
  latent_shape: tuple[int, int, int] | None  # shape [h, w, c] of latents; None in pixel space

  @property
  def labels(self) -> np.ndarray:
    """The class label of each picture of a cell, int32 [images]."""
    return grid_cells.labels(self.num_classes, self.images)

  def classes_for(self, extractor: extractors.Extractor) -> np.ndarray | None:
    """Returns the class labels if the extractor predicts the data set's classes, otherwise None."""
    return self.labels if extractor.num_classes == self.num_classes else None


def draw_missing(
  store: cell_store.Store,
  names: dict[grid_cells.Cell, str],
  drawing: Drawing,
  again: set[grid_cells.Cell],
  stop: interrupt.Interrupt,
) -> None:
  """Samples and measures pictures for each cell that the workdir lacks or that is in `again`.

  All processes call this function together; process 0 decides which cells are sampled.
  `stop.check()` is called between batches and raises if a signal to stop has arrived.
  """
  work = _agreed_work(store, names, drawing, again)
  todo = sorted((c for c, w in work.items() if w), key=lambda c: (c.folder, c.sampler))
  total = sum(c.num_steps * drawing.images for c in todo)
  sampler, made_for, done = None, None, 0
  with progress.Progress('drawing the grid', total) as bar:
    # Cells are sorted by model and sampler, because one compiled sampler serves all cells that
    # differ only in the number of steps and w.
    for cell in todo:
      stop.check()
      if work[cell] == _MEASURE:
        if not jax.process_index():
          _measure_kept(store, names[cell], drawing, stop)
      else:
        if made_for != (cell.folder, cell.sampler):
          made_for = (cell.folder, cell.sampler)
          sampler = _sampler(sampler, cell, drawing)
        report = lambda drawn, n=cell.num_steps, before=done: bar.update(before + drawn * n)
        with stop.patient():
          part = draw_share(store, sampler, cell, drawing, stop, report)
        _write(store, names[cell], part)
      done += cell.num_steps * drawing.images
      bar.update(done)


def _agreed_work(
  store: cell_store.Store,
  names: dict[grid_cells.Cell, str],
  drawing: Drawing,
  again: set[grid_cells.Cell],
) -> dict[grid_cells.Cell, int]:
  """Returns {cell: work that the cell still needs}, which is equal in all processes.

  Process 0 decides for all processes, because other processes may see new files on a shared disk
  late, and would decide differently.
  """
  work = np.zeros(len(names), np.int8)
  if not jax.process_index():
    store.clear_parts()  # removes files of killed processes
    work = [_work(store, name, drawing.images, c in again) for c, name in names.items()]
    work = np.array(work, np.int8)
    short = sum(
      w == _DRAW and c not in again and storage.exists(cell_store.pictures(store.workdir, names[c]))
      for c, w in zip(names, work, strict=True)
    )
    if short:
      progress.say(
        f'{short} cells keep fewer than their {drawing.images:,} pictures (evaluation.keep_images) '
        f'and are drawn again, to be measured by {store.extractor.name}'
      )
  processes.barrier('the cells to draw are known', hours=48)
  return dict(zip(names, processes.from_first(work), strict=True))


def _work(store: cell_store.Store, name: str, images: int, again: bool) -> int:
  """Returns the work that a cell still needs: _NOTHING, _MEASURE or _DRAW.

  _MEASURE is returned if all pictures of the cell are stored and only the measurements are missing.
  """
  if again:
    return _DRAW
  if store.has(name):
    return _NOTHING
  return _MEASURE if store.kept(name) >= images else _DRAW


def _measure_kept(
  store: cell_store.Store, name: str, drawing: Drawing, stop: interrupt.Interrupt
) -> None:
  """Measures the stored pictures of a cell and writes the measurements to the workdir.

  This function is called if all pictures of the cell are stored and only the measurements by
  `store.extractor` are missing.
  """
  pixels = cell_store.read(cell_store.pictures(store.workdir, name))['pixels']
  classes, images = drawing.classes_for(store.extractor), drawing.images
  running = measure.Running(store.extractor, images, store.bank)
  for first in range(0, images, extractors.BATCH):
    stop.check()
    index = np.arange(first, min(first + extractors.BATCH, images))
    found = extractors.extract(store.extractor, pixels[index])
    running.add(found, index, None if classes is None else classes[index])
  store.write_measure(name, running.measured())


def draw_share(
  store: cell_store.Store,
  sampler: sampling.Sampler,
  cell: grid_cells.Cell,
  drawing: Drawing,
  stop: interrupt.Interrupt,
  report: Callable[[int], None],
) -> cell_store.Part | None:
  """Samples and measures this process's share of a cell's pictures, and returns it as a `Part`.

  `report(n)` is called after each batch; n estimates how many pictures all processes have sampled.
  Features are computed on the devices, and only the pictures to be stored are copied to the host.
  Returns None if this process gets no batch, because there are more processes than batches.
  """
  classes = drawing.classes_for(store.extractor)
  running = measure.Running(store.extractor, drawing.images, store.bank)
  kept = _Kept(drawing)
  seconds, drawn, sums, began = 0.0, 0, None, time.perf_counter()
  # A thread adds up the features of one batch while the devices sample the next batch.
  with concurrent.futures.ThreadPoolExecutor(1) as thread:
    for index, (pixels, x) in _batches(sampler, cell, drawing):
      jax.block_until_ready(pixels)
      seconds += time.perf_counter() - began
      found = {n: np.asarray(f)[: len(index)] for n, f in store.extractor(pixels).items()}
      if sums is not None:
        sums.result()
      sums = thread.submit(running.add, found, index, None if classes is None else classes[index])
      kept.add(index, pixels, x)
      drawn += len(index)
      report(drawn * jax.process_count())
      stop.check()
      began = time.perf_counter()
  if sums is None:
    return None
  sums.result()
  return cell_store.Part(*kept.arrays(), running.measured(), seconds, drawn)


class _Kept:
  """Collects the first `keep_images` pictures of a cell, and their latents, for the workdir."""

  def __init__(self, drawing: Drawing):
    self._drawing = drawing
    latent = drawing.latent_shape or (0,)
    self._pixels = [np.zeros((0, *drawing.picture_shape), np.uint8)]
    self._latents = [np.zeros((0, *latent), np.float16)]
    self._index = [np.zeros(0, np.int64)]

  def add(self, index: np.ndarray, pixels: jax.Array, x: jax.Array) -> None:
    """Adds the pictures of a batch whose place in the cell is below `keep_images`.

    Raises NumericsError if a latent is too large for float16.
    """
    few = index[index < self._drawing.keep_images]
    if not len(few):
      return
    self._index.append(few)
    self._pixels.append(np.asarray(pixels)[: len(few)])
    latents = np.zeros((len(few), 0), np.float16)
    if self._drawing.latent_shape is not None:
      latents = np.asarray(x)[: len(few)].astype(np.float16)
      if not np.isfinite(latents).all():
        raise errors.NumericsError(
          'latents beyond 65504, the largest number of float16, cannot be stored in a cell; the '
          'network draws latents that no autoencoder decodes: use a smaller w in evaluation.ws, or '
          'train the round again'
        )
    self._latents.append(latents)

  def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (pixels, latents, places within the cell) of the collected pictures."""
    return tuple(np.concatenate(a) for a in (self._pixels, self._latents, self._index))


def _batches(
  sampler: sampling.Sampler, cell: grid_cells.Cell, drawing: Drawing
) -> Iterator[tuple[np.ndarray, tuple[jax.Array, jax.Array]]]:
  """Yields (index, (pixels, x)) for each batch that this process samples for the cell.

  `index` [b] are the places of the pictures within the cell, `pixels` are the pictures, and `x` are
  the latents, or in pixel space the samples before rounding. `pixels` and `x` stay on the devices.
  """
  images = np.arange(drawing.images)
  labels = images % sampler.num_prompts if sampler.num_prompts else drawing.labels
  size, count = sampler.batch_size, jax.process_count()
  for first in range(jax.process_index() * size, drawing.images, count * size):
    index = images[first : first + size]
    w = np.full(len(index), cell.w)
    yield index, sampler.draw_both(cell.first_seed + index, labels[index], w, cell.num_steps)


def _write(store: cell_store.Store, name: str, part: cell_store.Part | None) -> None:
  """Writes the files of a cell; process 0 merges the parts of all processes first.

  `part` is this process's part of the cell, or None if this process sampled nothing.
  """
  if jax.process_count() == 1:
    store.write(name, part)
    return
  if part is not None:
    file = store.part(name, jax.process_index())
    storage.write_bytes(file, cell_store.npz(part.to_arrays()))
  processes.barrier(f'{name} is drawn', hours=48)
  sharing = processes.from_everyone(part is not None)
  if jax.process_index():
    return
  files = [store.part(name, p) for p, drew in enumerate(sharing) if drew]
  parts = (cell_store.Part.from_arrays(cell_store.read(file)) for file in files)
  store.write(name, functools.reduce(cell_store.Part.merge, parts))
  for file in files:
    storage.remove(file)


def _sampler(before: Any, cell: grid_cells.Cell, drawing: Drawing) -> sampling.Sampler:
  """Returns the compiled sampler of a cell.

  `before` is the sampler that was made for an earlier cell, or None. If the compiled program of
  `before` fits `cell`, the program is used again with the parameters of the model of `cell`.
  """
  folder = folders.read_folder(cell.folder)
  if before is not None and before.serves(folder, cell.sampler):
    return before.with_params(folder)
  made = sampling.Sampler(folder, cell.sampler, drawing.batch_size)
  return made.with_prompts(drawing.prompts) if drawing.prompts else made
