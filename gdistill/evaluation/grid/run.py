"""Evaluates a run: samples and measures every cell of the grid, then writes the report."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from gdistill import errors
from gdistill.data import source
from gdistill.devices import processes
from gdistill.drawing import sampling
from gdistill.evaluation import protocol
from gdistill.evaluation.features import extractors
from gdistill.evaluation.grid import cell_store
from gdistill.evaluation.grid import cells as grid_cells
from gdistill.evaluation.grid import draw_and_measure
from gdistill.evaluation.grid import real_images
from gdistill.evaluation.grid import rows as grid_rows
from gdistill.evaluation.report import page
from gdistill.frozen import encode
from gdistill.process import interrupt
from gdistill.process import progress
from gdistill.process import timing
from gdistill.training import assemble
from gdistill.training import class_checks
from gdistill.training import same_data
from gdistill.workdir import finished as finished_rounds
from gdistill.workdir import storage


def evaluate(
  run: assemble.Run,
  size: str,
  stop: interrupt.Interrupt,
  seconds: timing.Seconds,
  again: dict[str, Any] | None = None,
) -> list[dict]:
  """Samples and measures the grid's missing cells; writes report/metrics.json and report/data.json.

  A cell of the grid is one model, sampler, number of steps and w.
  `size` is the size of the grid, 'quick' or 'full'.
  `again` selects cells to sample once more, by values for some of the keys 'model', 'sampler',
  'num_steps' and 'w'.
  Every process of a run calls this function and samples its share of the pictures.
  Process 0 returns the rows of report/metrics.json; every other process returns [].
  """
  _check_finished(run)
  class_checks.check(run, tell=False)
  same_data.check_for_evaluation(run)
  same_data.record_samples(run.workdir, *run.own_pictures)
  grid = of_size(run, size)
  cells = list_cells(run, grid)
  asked = grid_cells.matching(cells, again)
  processes.agree('grid', cell_store.digest(size, again))
  with seconds('evaluate'):
    names = grid_cells.names(cells, grid.images)
    extractor = extractor_of(run, stop.check)
    processes.agree('extractor', extractor.key)
    store = cell_store.Store(run.workdir, extractor, run.evaluation.bank)
    drawing = drawing_of(run, grid)
    draw_and_measure.draw_missing(store, names, drawing, asked, stop)
    if jax.process_index():
      return []
    real = real_images.measure_sets(_real_sets(run), store, run.num_classes, stop)
    data, rows = grid_rows.make_rows(size, store, names, drawing, real, stop)
    full = full_rows(run) if size == 'quick' else []
    own = ('images', 'reference_steps')  # keys in which a quick row and a full row may differ
    differ = protocol.differences([full[0], rows[0]]) if full else {}
    if full and not differ.keys() - set(own):
      progress.say('the report keeps the full grid, whose cells are all still there')
      return full
    storage.write_json(run.workdir / 'report' / 'data.json', data)
    storage.write_json(run.workdir / 'report' / 'metrics.json', rows)
  return rows


def write(run: assemble.Run, rows: list[dict]) -> None:
  """Writes the HTML page of the run, and prints the paths of the page and of metrics.json."""
  page.write(run.workdir)
  report = f'{run.workdir}/report'
  progress.say(f'{len(rows)} rows in {report}/metrics.json, page {report}/index.html')


def check(run: assemble.Run) -> None:
  """Raises an error, before training, if the feature network cannot measure the run's pictures.

  A public feature network needs an existing weight file and pictures with three channels. The
  weight file is not read.
  """
  e = run.evaluation
  if e.extractor != 'classifier':
    channels = 3 if run.latents.autoencoder else run.input_shape[2]
    extractors.check(e.extractor, e.weights, channels)


def missing(run: assemble.Run, size: str) -> list[grid_cells.Cell]:
  """Returns the cells of the grid without pictures in the workdir; all rounds must be finished."""
  grid = of_size(run, size)
  names = grid_cells.names(list_cells(run, grid), grid.images)
  return [c for c, name in names.items() if not _drawn(run, name)]


def of_size(run: assemble.Run, size: str) -> grid_cells.Grid:
  """Returns the extent of the run's grid: every w and number of steps, and the images of a cell.

  `size` is the size of the grid, 'quick' or 'full'.
  """
  e, (low, high) = run.evaluation, run.w_range
  images, steps = e.full_images, e.full_reference_steps
  if size == 'quick':
    images, steps = e.quick_images, e.quick_reference_steps
  sampler = sampling.own_sampler({'sampler': run.student_sampler})
  student_ws = tuple(w for w in e.ws if low <= w <= high)
  return grid_cells.Grid(size, e.ws, e.num_steps, images, steps, sampler, student_ws)


def list_cells(run: assemble.Run, grid: grid_cells.Grid) -> list[grid_cells.Cell]:
  """Returns the cells of a grid of this run, each one model, sampler, number of steps and w."""
  return grid_cells.list_cells(grid, run.plan, run.workdir, run.teacher_folder)


def extractor_of(
  run: assemble.Run, look: Callable[[], None] = lambda: None
) -> extractors.Extractor:
  """Returns the feature network that the run's recipe names.

  `look()` is called during the training of a classifier and raises if the process should stop.
  """
  return real_images.extractor_of(
    run.evaluation, run.picture_shape, lambda: _pictures(run)[0], run.num_classes, run.workdir, look
  )


def drawing_of(run: assemble.Run, grid: grid_cells.Grid) -> draw_and_measure.Drawing:
  """Returns the settings for sampling the pictures of a grid's cells, from the run's recipe."""
  return draw_and_measure.Drawing(
    images=grid.images,
    batch_size=run.evaluation.batch_size,
    keep_images=run.evaluation.keep_images,
    num_classes=run.num_classes,
    prompts=run.prompts,
    picture_shape=run.picture_shape,
    latent_shape=run.input_shape if run.autoencoder else None,
  )


def full_rows(run: assemble.Run) -> list[dict]:
  """Returns the rows of report/metrics.json if they cover every cell of the full grid, else [].

  A report never mixes rows of the quick and the full grid, because a Fréchet distance over 500
  images is not comparable with a Fréchet distance over 2,000 images.
  """
  file = run.workdir / 'report' / 'metrics.json'
  try:
    rows = storage.read_json(file) if storage.exists(file) else []
  except errors.CheckpointError:
    rows = []  # a damaged metrics.json counts as empty; `evaluate` writes it again
  if not isinstance(rows, list) or not all(isinstance(r, dict) for r in rows):
    rows = []
  grid = of_size(run, 'full')
  names = set(grid_cells.names(list_cells(run, grid), grid.images).values())
  whole = {r.get('cell') for r in rows if r.get('grid') == 'full'} == names
  return rows if whole and all(_drawn(run, name) for name in names) else []


def _check_finished(run: assemble.Run) -> None:
  for r in run.plan:
    if r.stage != 'encoder' and not finished_rounds.is_finished(run.workdir / r.name):
      raise errors.ConfigError(
        f'--workdir={run.workdir}: round {r.name} is not finished; repeat the training command, '
        'gdistill train, until the run has finished, then evaluate'
      )


def _drawn(run: assemble.Run, name: str) -> bool:
  return storage.exists(cell_store.pictures(run.workdir, name))


def _pictures(run: assemble.Run) -> tuple[source.Source, ...]:
  """Returns the run's pictures, which leave out what the encoding of the latents leaves out."""
  if not (run.autoencoder and run.latents.skip_corrupt):
    return run.pictures
  return tuple(dataclasses.replace(one, leaves_out=errors.DataError) for one in run.pictures)


def _real_sets(run: assemble.Run) -> list[real_images.RealSet]:
  """Returns the sets of real images to measure: held out, training, and perhaps autoencoded.

  The set 'autoencoded' exists only in latent space and holds held-out images that the autoencoder
  encoded and decoded. A perfect model of the latents would get the metrics of
  the set 'autoencoded'.
  """
  train, held = (images.subset(images.indices(run.evaluation.real_images))
                 for images in _pictures(run))  # fmt: skip
  name, split = run.data.name, run.data.held_out_split or 'held out'
  sets = [
    real_images.RealSet('held out', name, split, held),
    real_images.RealSet('training', name, run.data.split, train),
  ]
  if run.autoencoder:
    through = encode.autoencoded(run.autoencoder, run.latents.batch_size)
    sets.append(real_images.RealSet('autoencoded', name, f'{split}, autoencoded', held, through))
  return sets
