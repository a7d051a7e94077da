"""Every missing cell of the grid drawn and measured, on all devices and hosts."""

import concurrent.futures
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

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

_NOTHING, _MEASURE, _DRAW = range(3)  # the work that a cell needs


@dataclasses.dataclass(frozen=True, eq=False)
class Drawing:
  """How the pictures of all cells are drawn, and which of them are kept."""

  images: int  # of each cell
  batch_size: int
  keep_images: int
  num_classes: int
  prompts: list[str]  # [] without text
  picture_shape: tuple[int, int, int]
  latent_shape: tuple[int, int, int] | None  # None in pixel space

  @property
  def labels(self) -> np.ndarray:
    """Returns the label of every image."""
    return grid_cells.labels(self.num_classes, self.images)

  def classes_for(self, extractor: extractors.Extractor) -> np.ndarray | None:
    """Returns the labels if the extractor classifies the data's own classes, otherwise None."""
    return self.labels if extractor.num_classes == self.num_classes else None


def draw_missing(
  store: cell_store.Store,
  names: dict[grid_cells.Cell, str],
  drawing: Drawing,
  again: set[grid_cells.Cell],
  stop: interrupt.Interrupt,
) -> None:
  """Draws and measures every cell that is missing or is in `again`; process 0 decides which."""
  work = _agreed_work(store, names, drawing, again)
  todo = sorted((c for c, w in work.items() if w), key=lambda c: (c.folder, c.sampler))
  total = sum(c.num_steps * drawing.images for c in todo)
  sampler, made_for, done = None, None, 0
  with progress.Progress('drawing the grid', total) as bar:
    # Sorted by sampler, so one compiled sampler at a time serves all its N and w.
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
  """Returns the work of each cell as process 0 sees it: processes may see a shared disk late."""
  work = np.zeros(len(names), np.int8)
  if not jax.process_index():
    store.clear_parts()  # left by processes that were killed
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
  """Returns the work of a cell; a cell that keeps all its pictures is only measured."""
  if again:
    return _DRAW
  if store.has(name):
    return _NOTHING
  return _MEASURE if store.kept(name) >= images else _DRAW


def _measure_kept(
  store: cell_store.Store, name: str, drawing: Drawing, stop: interrupt.Interrupt
) -> None:
  """Measures a cell from its kept pictures, when only this extractor's measure is missing."""
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
  """Draws and measures this process's share of a cell; most pictures never leave the devices.

  Returns None if the cell has fewer batches than there are processes before this one.
  """
  classes = drawing.classes_for(store.extractor)
  running = measure.Running(store.extractor, drawing.images, store.bank)
  kept = _Kept(drawing)
  seconds, drawn, sums, began = 0.0, 0, None, time.perf_counter()
  # A thread sums up the features of one batch while the devices draw the next batch.
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
  """The first pictures of a cell, which stay in the workdir, and their latents."""

  def __init__(self, drawing: Drawing):
    self._drawing = drawing
    latent = drawing.latent_shape or (0,)
    self._pixels = [np.zeros((0, *drawing.picture_shape), np.uint8)]
    self._latents = [np.zeros((0, *latent), np.float16)]
    self._index = [np.zeros(0, np.int64)]

  def add(self, index: np.ndarray, pixels: jax.Array, x: jax.Array) -> None:
    """Adds those pictures of a batch whose place is among the first `keep_images`."""
    few = index[index < self._drawing.keep_images]
    if not len(few):
      return
    self._index.append(few)
    self._pixels.append(np.asarray(pixels)[: len(few)])
    latents = np.zeros((len(few), 0), np.float16)
    if self._drawing.latent_shape is not None:
      latents = np.asarray(x, np.float16)[: len(few)]
    self._latents.append(latents)

  def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (pixels, latents, index)."""
    return tuple(np.concatenate(a) for a in (self._pixels, self._latents, self._index))


def _batches(
  sampler: sampling.Sampler, cell: grid_cells.Cell, drawing: Drawing
) -> Iterator[tuple[np.ndarray, tuple[jax.Array, jax.Array]]]:
  """Yields (index, (pixels, x) on the devices) of every batch that this process draws."""
  images = np.arange(drawing.images)
  labels = images % sampler.num_prompts if sampler.num_prompts else drawing.labels
  size, count = sampler.batch_size, jax.process_count()
  for first in range(jax.process_index() * size, drawing.images, count * size):
    index = images[first : first + size]
    w = np.full(len(index), cell.w)
    yield index, sampler.draw_both(cell.first_seed + index, labels[index], w, cell.num_steps)


def _write(store: cell_store.Store, name: str, part: cell_store.Part | None) -> None:
  """Writes a cell; of several processes, the first one writes the merged parts of all."""
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
  """Returns the sampler of a cell: `before` with other parameters if its program fits."""
  folder = folders.read_folder(cell.folder)
  if before is not None and before.serves(folder, cell.sampler):
    return before.with_params(folder)
  made = sampling.Sampler(folder, cell.sampler, drawing.batch_size)
  return made.with_prompts(drawing.prompts) if drawing.prompts else made
