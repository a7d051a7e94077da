"""The w x N grid of a run: every cell drawn once, measured against the data and the teacher."""

import dataclasses
import functools
import hashlib
import io
import json
import time
from typing import Any

import numpy as np

from gdistill import checkpoints
from gdistill import errors
from gdistill import interrupt
from gdistill import model
from gdistill import progress
from gdistill import recipe as recipes
from gdistill import sampling
from gdistill import storage
from gdistill import train
from gdistill.data import pipeline as data
from gdistill.evaluation import features
from gdistill.evaluation import inception_score
from gdistill.evaluation import precision_recall
from gdistill.evaluation import report
from gdistill.evaluation import statistics
from gdistill.stages import rounds


@dataclasses.dataclass(frozen=True)
class Cell:
  """One figure of the grid: a model, its sampler, N and w."""

  model: str  # 'teacher' or 'student'
  folder: str
  sampler: str
  num_steps: int
  w: float


def plan(recipe: recipes.Recipe, workdir: storage.epath.Path, grid: str) -> list[Cell]:
  """The cells of a grid: the guided teacher with two samplers, every student with its own.

  The first len(ws) cells are the reference: the guided teacher's many DDIM steps. DPM-Solver++,
  which is of second order, has a quarter as many for its own longest walk.
  """
  e = recipe.evaluation
  reference = e.quick_reference_steps if grid == 'quick' else e.full_reference_steps
  teacher = str(teacher_folder(recipe, workdir))
  cells = [Cell('teacher', teacher, 'ddim', reference, w) for w in e.ws]
  for sampler, most in (('ddim', reference), ('dpm_solver', max(1, reference // 4))):
    for n in (most, *e.num_steps):
      cells += [Cell('teacher', teacher, sampler, n, w) for w in e.ws]
  own = sampling.own_sampler({'sampler': recipe.progressive.sampler})
  for r in rounds.plan(recipe):
    ws = [w for w in e.ws if recipe.guidance.w_min <= w <= recipe.guidance.w_max]
    folder = str(workdir / r.name)
    if r.num_steps in e.num_steps:
      cells += [Cell('student', folder, own, r.num_steps, w) for w in ws]
  return list(dict.fromkeys(cells))


def teacher_folder(recipe: recipes.Recipe, workdir: storage.epath.Path) -> storage.epath.Path:
  """The guided teacher a run descends from, here or behind its `initial` folder."""
  if recipe.stages[0] == 'teacher':
    return workdir / rounds.plan(recipe)[0].name
  folder = storage.path(recipe.initial)
  card = checkpoints.read_card(folder)
  while card['stage'] != 'teacher':
    before = card['teacher']  # a round beside this one by its name, another run's by its path
    folder = storage.path(before) if '/' in before else folder.parent / before
    if not checkpoints.is_finished(folder):
      raise errors.ConfigError(
        f'initial={recipe.initial!r} descends from {folder}, which is not there; copy that round '
        'too: the report measures against the guided teacher'
      )
    card = checkpoints.read_card(folder)
  return folder


def run(
  workdir: Any,
  grid: str,
  stop: interrupt.Interrupt,
  seconds: train.Seconds,
  again: dict[str, Any] | None = None,
) -> list[dict]:
  """Draws what is missing, measures everything, writes report/metrics.json and data.json; `write`
  makes the page of them.

  `again` ({'model': ..., 'sampler': ..., 'num_steps': ..., 'w': ...}, any of them) draws the
  matching cells anew. Returns the rows.
  """
  workdir = storage.path(workdir)
  recipe = read_recipe(workdir)
  for r in rounds.plan(recipe):
    if not checkpoints.is_finished(workdir / r.name):
      raise errors.ConfigError(
        f'--workdir={workdir}: round {r.name} is not finished; repeat the training command first'
      )
  cells = plan(recipe, workdir, grid)
  images = _images(recipe, grid)
  with seconds('evaluate'):
    ids = cell_ids(cells, images)
    _draw(recipe, workdir, ids, images, stop, _matching(cells, again))
    real, rows = _measure(recipe, workdir, ids, images, grid, stop)
    full = _full_rows(recipe, workdir) if grid == 'quick' else []
    if full and full[0]['features'] == rows[0]['features']:
      progress.say('the report keeps the full grid, whose cells are all still there')
      return full
    storage.write_json(workdir / 'report' / 'data.json', real)
    storage.write_json(workdir / 'report' / 'metrics.json', rows)
  return rows


def read_recipe(workdir: storage.epath.Path) -> recipes.Recipe:
  """The recipe of the run in a workdir."""
  if not storage.exists(workdir / 'config.json'):
    raise errors.ConfigError(f'--workdir={workdir} holds no run (no config.json); train one first')
  try:
    return recipes.from_config(storage.read_json(workdir / 'config.json'))
  except errors.ConfigError as e:
    raise errors.ConfigError(
      f'{workdir}/config.json: {e}; if another version of gdistill wrote it, use that one'
    ) from e


def missing(workdir: storage.epath.Path, grid: str) -> list[Cell]:
  """The cells that are not drawn yet, once every round is finished."""
  recipe = read_recipe(workdir)
  ids = cell_ids(plan(recipe, workdir, grid), _images(recipe, grid))
  store = workdir / 'evaluation' / 'cells'
  return [c for c, name in ids.items() if not storage.exists(store / f'{name}.npz')]


def _images(recipe: recipes.Recipe, grid: str) -> int:
  return recipe.evaluation.quick_images if grid == 'quick' else recipe.evaluation.full_images


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
  cells = plan(recipe, workdir, 'full')
  wanted = set(cell_ids(cells, recipe.evaluation.full_images).values())
  whole = {r.get('cell') for r in rows if r.get('grid') == 'full'} == wanted
  return rows if whole and not missing(workdir, 'full') else []


def cell_ids(cells: list[Cell], images: int) -> dict[Cell, str]:
  """A name for each, the same exactly when the pictures are: it holds the parameters' digest."""
  digests = {f: checkpoints.params_digest(f) for f in dict.fromkeys(c.folder for c in cells)}
  ids = {}
  for c in cells:
    what = [digests[c.folder], c.sampler, c.num_steps, c.w, images, 'clip']
    digest = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:12]
    ids[c] = f'{c.model}-{c.sampler}-{c.num_steps}-w{c.w:g}-{digest}'
  return ids


def _matching(cells: list[Cell], again: dict[str, Any] | None) -> set[Cell]:
  if not again:
    return set()
  found = {c for c in cells if all(getattr(c, k) == v for k, v in again.items())}
  if not found:
    asked = ', '.join(f'--{k}={v}' for k, v in again.items())
    have = {k: sorted({getattr(c, k) for c in cells}) for k in again}
    raise errors.ConfigError(f'{asked} is no cell of this grid, which has {have}')
  return found


def _labels(recipe: recipes.Recipe, images: int) -> np.ndarray:
  """Exactly balanced where `images` allows it: image i has label i mod classes and seed i."""
  return (np.arange(images) % recipe.model.num_classes).astype(np.int32)


def _labels_in_words(recipe: recipes.Recipe, images: int) -> str:
  classes = recipe.model.num_classes
  if images % classes == 0:
    return 'balanced: image i has label i mod classes'
  if images > classes:
    return f'image i has label i mod classes; {images} images do not divide over {classes} classes'
  return f'image i has label i: only {images} of {classes} classes'


def _draw(recipe, workdir, ids, images, stop, again) -> None:
  store = workdir / 'evaluation' / 'cells'
  todo = [c for c in ids if c in again or not storage.exists(store / f'{ids[c]}.npz')]
  total = sum(c.num_steps * images for c in todo)
  labels, seeds = _labels(recipe, images), np.arange(images)
  sampler, made_for, done = None, None, 0
  with progress.Progress('drawing the grid', total) as bar:
    # One compiled sampler at a time, for all its N and w.
    for cell in sorted(todo, key=lambda c: (c.folder, c.sampler)):
      stop.check()
      if made_for != (cell.folder, cell.sampler):
        made_for = (cell.folder, cell.sampler)
        sampler = _sampler(sampler, cell, recipe.evaluation.batch_size)
      w, began = np.full(images, cell.w), time.monotonic()
      pixels = sampler(
        seeds, labels, w, cell.num_steps, stop,
        lambda drawn, n=cell.num_steps, before=done: bar.update(before + drawn * n),
      )  # fmt: skip
      each = (time.monotonic() - began) / images
      done += cell.num_steps * images
      arrays = {'pixels': pixels, 'labels': labels, 'seconds_per_image': np.float64(each)}
      storage.write_bytes(store / f'{ids[cell]}.npz', _npz(arrays))


def _sampler(before: sampling.Sampler | None, cell: Cell, batch: int) -> sampling.Sampler:
  """The compiled sampler of before with this cell's parameters where it is the same program."""
  folder = model.read_folder(cell.folder)
  if before is not None and before.serves(folder, cell.sampler):
    return before.with_params(folder)
  return sampling.Sampler(folder, cell.sampler, batch)


def _npz(arrays: dict[str, np.ndarray]) -> bytes:
  buffer = io.BytesIO()
  np.savez_compressed(buffer, **arrays)
  return buffer.getvalue()


@functools.lru_cache(maxsize=1)
def real_images(recipe: recipes.Recipe) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
  """(pixels, labels) of the training and of the held-out images that figures are measured with."""
  both = data.load(recipe.data, model.image_shape(recipe.model))
  return tuple(s.some(recipe.evaluation.real_images) for s in both)


def classifier(recipe: recipes.Recipe, workdir: storage.epath.Path) -> dict:
  """The feature network, trained on the training images once and kept in the workdir."""
  (pixels, labels), _ = real_images(recipe)
  key = hashlib.sha256(pixels.tobytes() + labels.tobytes()).hexdigest()[:12]
  file = workdir / 'evaluation' / f'classifier-{key}.npz'
  if storage.exists(file):
    try:
      return features.from_bytes(storage.read_bytes(file))
    except Exception as e:  # zipfile, zlib and numpy each have their own
      raise errors.CheckpointError(f'{file} is damaged ({e}); remove it and repeat') from e
  params = features.train_classifier(pixels, labels, recipe.model.num_classes, seed=0)
  storage.write_bytes(file, features.to_bytes(params))
  return params


def _measure(recipe, workdir, ids, images, grid, stop) -> tuple[list[dict], list[dict]]:
  net = classifier(recipe, workdir)
  (train_pixels, train_labels), (held_pixels, held_labels) = real_images(recipe)
  seen, held = (features.extract(net, pixels) for pixels in (train_pixels, held_pixels))
  moments = {k: statistics.Moments.of(f.features) for k, f in (('seen', seen), ('held', held))}
  support = precision_recall.Support.of(seen.features)
  labels = _labels(recipe, images)
  cards = {f: checkpoints.read_card(f) for f in {c.folder for c in ids}}

  def figures(found, labels):
    own = statistics.Moments.of(found.features)
    precision, recall = precision_recall.precision_and_recall(
      support, precision_recall.Support.of(found.features)
    )
    return own, {
      'fd': statistics.frechet_distance(own, moments['seen']),
      'fd_held_out': statistics.frechet_distance(own, moments['held']),
      'inception_score': inception_score.score(found.logits)[0],
      'accuracy': float(np.mean(np.argmax(found.logits, axis=1) == labels)),
      'precision': precision,
      'recall': recall,
      'nearest_training': _median(found.features, seen.features),
      'nearest_held_out': _median(found.features, held.features),
    }

  shared = {
    'grid': grid,
    'reference_steps': next(iter(ids)).num_steps,
    'features': features.digest(net),
    'labels': _labels_in_words(recipe, images),
    'seeds': f'0..{images - 1}',
    'clipping': 'x_hat to [-1, 1] at every step',
    'pixels': 'rounded to uint8',
    'reference_set': f'{recipe.data.name}, {len(train_labels)} training and '
    f'{len(held_labels)} held out',
  }
  data_row = {'model': 'data', 'stage': None, 'sampler': None, 'num_steps': 0, 'w': None}
  data_row |= {'network_calls': 0, 'fd_teacher': None, 'rms_teacher': None}
  data_row |= {'images': len(held_labels), 'seconds_per_image': None, **shared}
  # What drawing perfectly would score: real images nobody trained on, and those trained on.
  real = [{**data_row, **figures(held, held_labels)[1], 'set': 'held out'}]
  real.append({
    **data_row, **figures(seen, train_labels)[1], 'set': 'training', 'images': len(train_labels),
  })  # fmt: skip
  rows, reference = [], {}
  for cell, name in ids.items():
    stop.check()
    file = workdir / 'evaluation' / 'cells' / f'{name}.npz'
    stored = _read_cell(file)
    own, found = figures(features.extract(net, stored['pixels']), labels)
    if cell.w not in reference:  # plan() puts the reference first
      reference[cell.w] = (own, stored['pixels'])
    target, target_pixels = reference[cell.w]
    card = cards[cell.folder]
    rows.append({
      'model': cell.model,
      'stage': card['stage'],
      'sampler': cell.sampler,
      'num_steps': cell.num_steps,
      'w': cell.w,
      'network_calls': cell.num_steps * (2 if card['guided'] else 1),
      **found,
      'fd_teacher': statistics.frechet_distance(own, target),
      'rms_teacher': statistics.rms(stored['pixels'], target_pixels),
      'images': images,
      'seconds_per_image': float(stored['seconds_per_image']),
      'round': storage.path(cell.folder).name,
      'guided': card['guided'],
      'cell': name,
      **shared,
    })  # fmt: skip
  return real, rows


def _median(points: np.ndarray, reference: np.ndarray) -> float:
  return float(np.median(precision_recall.nearest_distances(points, reference)))


def _read_cell(file: storage.epath.Path) -> dict[str, np.ndarray]:
  try:
    with np.load(io.BytesIO(storage.read_bytes(file)), allow_pickle=False) as stored:
      return {name: stored[name] for name in ('pixels', 'seconds_per_image')}
  except Exception as e:  # zipfile, zlib and numpy each have their own
    raise errors.CheckpointError(f'{file} is damaged ({e}); remove it and evaluate again') from e


def write(workdir: Any, rows: list[dict]) -> None:
  """The page, and a line that says where it is."""
  workdir = storage.path(workdir)
  report.write(workdir)
  progress.say(
    f'{len(rows)} rows in {workdir}/report/metrics.json, page {workdir}/report/index.html'
  )
