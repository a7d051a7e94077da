"""Cells drawn and measured: every missing cell of the grid, on all devices and hosts."""

import concurrent.futures
import functools
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from gdistill.devices import processes
from gdistill.drawing import sampling
from gdistill.evaluation.features import extractors
from gdistill.evaluation.figures import measure
from gdistill.evaluation.grid import cell_store as keeping
from gdistill.evaluation.grid import cells as grids
from gdistill.evaluation.grid import real_images
from gdistill.evaluation.grid import run as grid_run
from gdistill.frozen import encode
from gdistill.process import progress
from gdistill.recipe import settings as recipes
from gdistill.rounds import folder as folders
from gdistill.rounds import network as networks
from gdistill.workdir import storage

# ---- cells


def draw_missing(recipe, store, names, images, stop, again) -> None:
  """Every cell that is not there, or is asked for again; process 0 says which those are."""
  work = np.zeros(len(names), np.int8)
  if not jax.process_index():
    store.clear_parts()  # of processes that were killed
    work = np.array([_work(store, name, images, c in again) for c, name in names.items()], np.int8)
    short = sum(
      w == grid_run.DRAW
      and c not in again
      and storage.exists(keeping.pictures(store.workdir, names[c]))
      for c, w in zip(names, work, strict=True)
    )
    if short:
      progress.say(
        f'{short} cells keep fewer than their {images:,} pictures (evaluation.keep_images) and are '
        f'drawn anew, to be measured by {store.extractor.name}'
      )
  processes.barrier('the cells to draw are known', hours=48)
  work = dict(zip(names, processes.from_first(work), strict=True))
  todo = sorted((c for c, w in work.items() if w), key=lambda c: (c.folder, c.sampler))
  total = sum(c.num_steps * images for c in todo)
  sampler, made_for, done, prompts = None, None, 0, encode.prompts(recipe)
  with progress.Progress('drawing the grid', total) as bar:
    # One compiled sampler at a time, for all its N and w.
    for cell in todo:
      stop.check()
      if work[cell] == grid_run.MEASURE:
        if not jax.process_index():
          _measure_again(recipe, store, names[cell], images, stop)
      else:
        if made_for != (cell.folder, cell.sampler):
          made_for = (cell.folder, cell.sampler)
          sampler = _sampler(sampler, cell, recipe.evaluation.batch_size, prompts)
        report = lambda drawn, n=cell.num_steps, before=done: bar.update(before + drawn * n)
        with stop.patient():
          part = _drawn(recipe, store.extractor, sampler, cell, images, stop, report)
        _keep(store, names[cell], part)
      done += cell.num_steps * images
      bar.update(done)


_NOTHING, _MEASURE, _DRAW = range(3)


def _work(store: keeping.Store, name: str, images: int, again: bool) -> int:
  """What is to be done for a cell; pictures that are all kept need only be measured."""
  if again:
    return grid_run.DRAW
  if store.has(name):
    return _NOTHING
  return grid_run.MEASURE if store.kept(name) >= images else grid_run.DRAW


def _measure_again(recipe, store, name, images, stop) -> None:
  """Measures pictures that are all kept, where only the measure by this extractor is missing."""
  pixels = keeping.read(keeping.pictures(store.workdir, name))['pixels']
  known = real_images.known_classes(store.extractor, recipe, grids.labels(recipe, images))
  running = measure.Running(store.extractor, images, store.bank)
  for first in range(0, images, extractors.BATCH):
    stop.check()
    index = np.arange(first, min(first + extractors.BATCH, images))
    found = extractors.extract(store.extractor, pixels[index])
    running.add(found, index, None if known is None else known[index])
  store.write_measure(name, running.measured())


def _drawn(recipe, extractor, sampler, cell, images, stop, report) -> keeping.Part | None:
  """This process's share of a cell: drawn and measured on the devices, few pictures leave them.

  None where fewer batches are to be drawn than there are processes before this one.
  """
  e, labels = recipe.evaluation, grids.labels(recipe, images)
  seeds, w = cell.first_seed + np.arange(images), np.full(images, cell.w)
  known = real_images.known_classes(extractor, recipe, labels)
  running = measure.Running(extractor, images, e.bank)
  kept, kept_latents, kept_index, drawing = [], [], [], 0.0
  began, drawn, sums = time.perf_counter(), 0, None
  # The host sums up one batch while the devices draw the next.
  with concurrent.futures.ThreadPoolExecutor(1) as beside:
    asked = np.arange(images) % sampler.num_prompts if sampler.num_prompts else labels
    for index, (pixels, x) in _shares(sampler, seeds, asked, w, cell.num_steps):
      jax.block_until_ready(pixels)
      drawing += time.perf_counter() - began
      found = {n: np.asarray(f)[: len(index)] for n, f in extractor(pixels).items()}
      if sums is not None:
        sums.result()
      sums = beside.submit(running.add, found, index, None if known is None else known[index])
      if index[0] < e.keep_images:
        few = index[index < e.keep_images]
        kept.append(np.asarray(pixels)[: len(few)])
        kept_latents.append(_as_latents(recipe, x)[: len(few)])
        kept_index.append(few)
      drawn += len(index)
      report(drawn * jax.process_count())
      stop.check()
      began = time.perf_counter()
  if sums is None:
    return None
  sums.result()
  shape = (0, *encode.pixel_shape(recipe))
  none = _as_latents(recipe, np.zeros((0, *networks.image_shape(recipe.model))))
  return keeping.Part(
    np.concatenate([np.zeros(shape, np.uint8), *kept]),
    np.concatenate([none, *kept_latents]),
    np.concatenate([np.zeros(0, np.int64), *kept_index]),
    running.measured(),
    drawing,
    drawn,
  )


def _as_latents(recipe: recipes.Recipe, x: Any) -> np.ndarray:
  """What is kept of what the network drew: all of latents, nothing of images."""
  return np.asarray(x, np.float16) if recipe.latent else np.zeros((len(x), 0), np.float16)


def _shares(sampler, seeds, labels, w, num_steps) -> Iterator[tuple[np.ndarray, tuple]]:
  """(index, (pixels, x) on the devices) of every batch that falls to this process."""
  size, count = sampler.batch_size, jax.process_count()
  for first in range(jax.process_index() * size, len(seeds), count * size):
    index = np.arange(first, min(first + size, len(seeds)))
    yield index, sampler.draw_both(seeds[index], labels[index], w[index], num_steps)


def _keep(store: keeping.Store, name: str, part: keeping.Part | None) -> None:
  """Writes a cell; of several processes the first, once it has what all of them drew."""
  if jax.process_count() == 1:
    store.write(name, part)
    return
  if part is not None:
    storage.write_bytes(store.part(name, jax.process_index()), keeping.npz(part.to_arrays()))
  processes.barrier(f'{name} is drawn', hours=48)
  sharing = processes.from_everyone(part is not None)
  if jax.process_index():
    return
  files = [store.part(name, p) for p, drew in enumerate(sharing) if drew]
  parts = (keeping.Part.from_arrays(keeping.read(file)) for file in files)
  store.write(name, functools.reduce(keeping.Part.merge, parts))
  for file in files:
    storage.remove(file)


def _sampler(
  before: sampling.Sampler | None, cell: grids.Cell, batch: int, prompts: list[str]
) -> sampling.Sampler:
  """The compiled sampler of before with this cell's parameters where it is the same program."""
  folder = folders.read_folder(cell.folder)
  if before is not None and before.serves(folder, cell.sampler):
    return before.with_params(folder)
  made = sampling.Sampler(folder, cell.sampler, batch)
  return made.with_prompts(prompts) if prompts else made
