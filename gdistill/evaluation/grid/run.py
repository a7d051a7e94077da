"""The grid of a run: every cell drawn and measured once, on all devices and hosts, then rows."""

from collections.abc import Callable
from typing import Any

import jax

from gdistill import errors
from gdistill.devices import processes
from gdistill.evaluation import protocol
from gdistill.evaluation.features import extractors
from gdistill.evaluation.grid import cell_store as keeping
from gdistill.evaluation.grid import cells as grids
from gdistill.evaluation.grid import draw_and_measure
from gdistill.evaluation.grid import real_images
from gdistill.evaluation.grid import rows as grid_rows
from gdistill.evaluation.report import page
from gdistill.frozen import encode
from gdistill.process import interrupt
from gdistill.process import progress
from gdistill.process import timing
from gdistill.recipe import reading
from gdistill.recipe import settings as recipes
from gdistill.rounds import plan as plans
from gdistill.workdir import finished as finished_rounds
from gdistill.workdir import storage


def run(
  workdir: Any,
  grid: str,
  stop: interrupt.Interrupt,
  seconds: timing.Seconds,
  again: dict[str, Any] | None = None,
  recipe: recipes.Recipe | None = None,
) -> list[dict]:
  """Draws what is missing, measures everything, writes report/metrics.json and data.json; `write`
  makes the page of them.

  `again` ({'model': ..., 'sampler': ..., 'num_steps': ..., 'w': ...}, any of them) draws the
  matching cells anew. `recipe` stands in for the run's own, with another evaluation. Every process
  of a run calls this and draws and measures its share; process 0 returns the rows, the others none.
  """
  workdir = storage.path(workdir)
  recipe = recipe or read_recipe(workdir)
  for r in plans.plan(recipe):
    if r.stage != 'encoder' and not finished_rounds.is_finished(workdir / r.name):
      raise errors.ConfigError(
        f'--workdir={workdir}: round {r.name} is not finished; repeat the training command first'
      )
  cells, images = grids.plan(recipe, workdir, grid), grids.images(recipe, grid)
  asked = grids.matching(cells, again)
  processes.agree('grid', keeping.digest(grid, again))
  with seconds('evaluate'):
    names = grids.names(cells, images)
    extractor = real_images.extractor_of(recipe, workdir, stop.check)
    processes.agree('extractor', extractor.key)
    store = keeping.Store(workdir, extractor, recipe.evaluation.bank)
    draw_and_measure.draw_missing(recipe, store, names, images, stop, asked)
    if jax.process_index():
      return []
    real, rows = grid_rows.make_rows(recipe, store, names, images, grid, stop)
    full = _full_rows(recipe, workdir) if grid == 'quick' else []
    own = ('images', 'reference_steps')  # of a grid; all else says how it was measured
    differ = protocol.differences([full[0], rows[0]]) if full else {}
    if full and not differ.keys() - set(own):
      progress.say('the report keeps the full grid, whose cells are all still there')
      return full
    storage.write_json(workdir / 'report' / 'data.json', real)
    storage.write_json(workdir / 'report' / 'metrics.json', rows)
  return rows


def check(recipe: recipes.Recipe) -> None:
  """That the grid can be measured when the training is over; reads no weights."""
  e = recipe.evaluation
  if e.extractor != 'classifier':
    channels = 3 if recipe.latent else recipe.model.image_channels
    extractors.check(e.extractor, e.weights, channels)


def read_recipe(
  workdir: storage.epath.Path, change: Callable[[dict[str, Any]], Any] | None = None
) -> recipes.Recipe:
  """The recipe of the run in a workdir, after `change` of its config."""
  if not storage.exists(workdir / 'config.json'):
    raise errors.ConfigError(f'--workdir={workdir} holds no run (no config.json); train one first')
  try:
    recipe = reading.from_config(storage.read_json(workdir / 'config.json'))
  except errors.ConfigError as e:
    raise errors.ConfigError(
      f'{workdir}/config.json: {e}; if another version of gdistill wrote it, use that one'
    ) from e
  if change is not None:
    config = reading.to_dict(recipe)
    change(config)
    recipe = reading.from_config(config)
  return encode.from_workdir(recipe, workdir)  # last: its paths may be what a config may not name


def missing(recipe: recipes.Recipe, workdir: storage.epath.Path, grid: str) -> list[grids.Cell]:
  """The cells that are not drawn yet, once every round is finished."""
  names = grids.names(grids.plan(recipe, workdir, grid), grids.images(recipe, grid))
  return [c for c, name in names.items() if not storage.exists(keeping.pictures(workdir, name))]


def _full_rows(recipe: recipes.Recipe, workdir: storage.epath.Path) -> list[dict]:
  """The report's rows where they are the whole full grid of these rounds; otherwise nothing.

  A report never mixes grids: a Frechet distance over 500 images does not compare with one over
  2,000.
  """
  file = workdir / 'report' / 'metrics.json'
  try:
    rows = storage.read_json(file) if storage.exists(file) else []
  except errors.CheckpointError:
    rows = []  # damaged: it is made anew of the cells
  if not isinstance(rows, list) or not all(isinstance(r, dict) for r in rows):
    rows = []
  cells = grids.plan(recipe, workdir, 'full')
  wanted = set(grids.names(cells, grids.images(recipe, 'full')).values())
  whole = {r.get('cell') for r in rows if r.get('grid') == 'full'} == wanted
  return rows if whole and not missing(recipe, workdir, 'full') else []


def write(workdir: Any, rows: list[dict]) -> None:
  """The page, and a line that says where it is."""
  workdir = storage.path(workdir)
  page.write(workdir)
  progress.say(
    f'{len(rows)} rows in {workdir}/report/metrics.json, page {workdir}/report/index.html'
  )
