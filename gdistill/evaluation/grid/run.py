"""The grid of a run: every cell drawn and measured once, then the rows and the page of the run."""

from collections.abc import Callable
from typing import Any

import jax

from gdistill import errors
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
from gdistill.workdir import finished as finished_rounds
from gdistill.workdir import storage


def evaluate(
  run: assemble.Run,
  size: str,
  stop: interrupt.Interrupt,
  seconds: timing.Seconds,
  again: dict[str, Any] | None = None,
) -> list[dict]:
  """Draws and measures the missing cells; writes report/metrics.json and report/data.json.

  `size` is 'quick' or 'full'. `again` ({'model': ..., 'sampler': ..., 'num_steps': ..., 'w': ...},
  any of them) draws the matching cells once more. Every process of a run calls this function and
  draws its share. Process 0 returns the rows, the other processes return [].
  """
  _check_finished(run)
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
    own = ('images', 'reference_steps')  # differ between sizes; all else says how rows were made
    differ = protocol.differences([full[0], rows[0]]) if full else {}
    if full and not differ.keys() - set(own):
      progress.say('the report keeps the full grid, whose cells are all still there')
      return full
    storage.write_json(run.workdir / 'report' / 'data.json', data)
    storage.write_json(run.workdir / 'report' / 'metrics.json', rows)
  return rows


def write(run: assemble.Run, rows: list[dict]) -> None:
  """Writes the page, and prints where the rows and the page are."""
  page.write(run.workdir)
  report = f'{run.workdir}/report'
  progress.say(f'{len(rows)} rows in {report}/metrics.json, page {report}/index.html')


def check(run: assemble.Run) -> None:
  """Checks, before the training, that the grid can be measured after it; reads no weights."""
  e = run.evaluation
  if e.extractor != 'classifier':
    channels = 3 if run.latents.autoencoder else run.input_shape[2]
    extractors.check(e.extractor, e.weights, channels)


def missing(run: assemble.Run, size: str) -> list[grid_cells.Cell]:
  """Returns the cells that are not drawn yet; every round must be finished."""
  grid = of_size(run, size)
  names = grid_cells.names(list_cells(run, grid), grid.images)
  return [c for c, name in names.items() if not _drawn(run, name)]


def of_size(run: assemble.Run, size: str) -> grid_cells.Grid:
  """Returns the run's grid of size 'quick' or 'full'."""
  e, (low, high) = run.evaluation, run.w_range
  images, steps = e.full_images, e.full_reference_steps
  if size == 'quick':
    images, steps = e.quick_images, e.quick_reference_steps
  sampler = sampling.own_sampler({'sampler': run.student_sampler})
  student_ws = tuple(w for w in e.ws if low <= w <= high)
  return grid_cells.Grid(size, e.ws, e.num_steps, images, steps, sampler, student_ws)


def list_cells(run: assemble.Run, grid: grid_cells.Grid) -> list[grid_cells.Cell]:
  """Returns the cells of a grid of this run."""
  return grid_cells.list_cells(grid, run.plan, run.workdir, run.teacher_folder)


def extractor_of(
  run: assemble.Run, look: Callable[[], None] = lambda: None
) -> extractors.Extractor:
  """Returns the feature network of this run."""
  return real_images.extractor_of(
    run.evaluation, run.picture_shape, run.pictures[0], run.num_classes, run.workdir, look
  )


def drawing_of(run: assemble.Run, grid: grid_cells.Grid) -> draw_and_measure.Drawing:
  """Returns how the cells of a grid of this run are drawn."""
  return draw_and_measure.Drawing(
    images=grid.images,
    batch_size=run.evaluation.batch_size,
    keep_images=run.evaluation.keep_images,
    num_classes=run.num_classes,
    prompts=run.prompts,
    picture_shape=run.picture_shape,
    latent_shape=run.input_shape if run.frozen.autoencoder else None,
  )


def full_rows(run: assemble.Run) -> list[dict]:
  """Returns the report's rows if they are the whole full grid of these rounds, otherwise [].

  A report never mixes sizes, because a Fréchet distance over 500 images does not compare with a
  distance over 2,000.
  """
  file = run.workdir / 'report' / 'metrics.json'
  try:
    rows = storage.read_json(file) if storage.exists(file) else []
  except errors.CheckpointError:
    rows = []  # a damaged report: it is made again from the cells
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
        f'--workdir={run.workdir}: round {r.name} is not finished; repeat the training command '
        'first'
      )


def _drawn(run: assemble.Run, name: str) -> bool:
  return storage.exists(cell_store.pictures(run.workdir, name))


def _real_sets(run: assemble.Run) -> list[real_images.RealSet]:
  """Returns the real images to measure: training, held out, and in latent space autoencoded.

  Autoencoded images are held-out images, encoded and decoded: what drawing latents perfectly would
  score.
  """
  train, held = (images.subset(images.indices(run.evaluation.real_images))
                 for images in run.pictures)  # fmt: skip
  name, split = run.data.name, run.data.held_out_split or 'held out'
  sets = [
    real_images.RealSet('held out', name, split, held),
    real_images.RealSet('training', name, run.data.split, train),
  ]
  if run.frozen.autoencoder:
    through = encode.autoencoded(run.frozen.autoencoder, run.latents.batch_size)
    sets.append(real_images.RealSet('autoencoded', name, f'{split}, autoencoded', held, through))
  return sets
