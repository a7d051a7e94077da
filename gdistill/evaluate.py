"""The grid of a run: every cell drawn and measured once, on all devices and hosts, then rows."""

import concurrent.futures
import functools
import hashlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from gdistill import cells as keeping
from gdistill import checkpoints
from gdistill import encode
from gdistill import errors
from gdistill import grid as grids
from gdistill import interrupt
from gdistill import model
from gdistill import parallel
from gdistill import progress
from gdistill import recipe as recipes
from gdistill import sampling
from gdistill import storage
from gdistill import train
from gdistill.data import source
from gdistill.evaluation import classifier
from gdistill.evaluation import extractors
from gdistill.evaluation import measure
from gdistill.evaluation import precision_recall
from gdistill.evaluation import protocol
from gdistill.evaluation import reference
from gdistill.evaluation import statistics
from gdistill.evaluation.report import page
from gdistill.stages import rounds


def run(
  workdir: Any,
  grid: str,
  stop: interrupt.Interrupt,
  seconds: train.Seconds,
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
  for r in rounds.plan(recipe):
    if r.stage != 'encoder' and not checkpoints.is_finished(workdir / r.name):
      raise errors.ConfigError(
        f'--workdir={workdir}: round {r.name} is not finished; repeat the training command first'
      )
  cells, images = grids.plan(recipe, workdir, grid), grids.images(recipe, grid)
  asked = grids.matching(cells, again)
  parallel.agree('grid', keeping.digest(grid, again))
  with seconds('evaluate'):
    names = grids.names(cells, images)
    extractor = extractor_of(recipe, workdir, stop.check)
    parallel.agree('extractor', extractor.key)
    store = keeping.Store(workdir, extractor, recipe.evaluation.bank)
    _draw(recipe, store, names, images, stop, asked)
    if jax.process_index():
      return []
    real, rows = _rows(recipe, store, names, images, grid, stop)
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
    recipe = recipes.from_config(storage.read_json(workdir / 'config.json'))
  except errors.ConfigError as e:
    raise errors.ConfigError(
      f'{workdir}/config.json: {e}; if another version of gdistill wrote it, use that one'
    ) from e
  if change is not None:
    config = recipes.to_dict(recipe)
    change(config)
    recipe = recipes.from_config(config)
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


# ---- what measures


def extractor_of(
  recipe: recipes.Recipe, workdir: storage.epath.Path, look: Callable[[], None] = lambda: None
) -> extractors.Extractor:
  """The feature network that the recipe asks for."""
  e = recipe.evaluation
  if e.extractor == 'classifier':
    return extractors.of_classifier(_classifier(recipe, workdir, look))
  found = extractors.load(e.extractor, e.weights)
  found.check(encode.pixel_shape(recipe))
  return found


def _classifier(
  recipe: recipes.Recipe, workdir: storage.epath.Path, look: Callable[[], None]
) -> classifier.Params:
  """The small network, trained on the training images once and kept in the workdir."""
  pixels, labels = real_images(recipe)[0].some(recipe.evaluation.real_images)
  key = hashlib.sha256(pixels.tobytes() + labels.tobytes()).hexdigest()[:12]
  file = workdir / 'evaluation' / f'classifier-{key}.npz'
  # One process trains it: other machines would round otherwise.
  if not jax.process_index() and not storage.exists(file):
    params = classifier.train_classifier(pixels, labels, recipe.model.num_classes, 0, look)
    storage.write_bytes(file, classifier.to_bytes(params))
  parallel.barrier('the classifier is there', hours=48)
  parallel.agree('the training images', key)
  try:
    return classifier.from_bytes(storage.read_bytes(file))
  except Exception as e:  # zipfile, zlib and numpy each have their own
    raise errors.CheckpointError(
      f'{file} is damaged ({errors.brief(e)}); remove it and repeat'
    ) from e


def real_images(recipe: recipes.Recipe) -> tuple[source.Source, source.Source]:
  """The training and the held-out images that figures are measured with."""
  return encode.pictures(recipe)


def _classes(
  extractor: extractors.Extractor, recipe: recipes.Recipe, labels: np.ndarray
) -> np.ndarray | None:
  """The labels where the extractor tells the data's own classes apart."""
  return labels if extractor.num_classes == recipe.model.num_classes else None


def _real(
  recipe: recipes.Recipe, store: keeping.Store, stop: interrupt.Interrupt
) -> dict[str, reference.Reference]:
  """{'training': ..., 'held out': ...}, measured once and kept in the workdir.

  In latent space also 'autoencoded': the held-out images as the decoder gives them back, which is
  what drawing latents perfectly would score.
  """
  out, (train, held) = {}, real_images(recipe)
  held_split = recipe.data.held_out_split or 'held out'
  sets = [('held out', held_split, held, None), ('training', recipe.data.split, train, None)]
  if recipe.latent:
    through = encode.autoencoded(recipe)
    sets.append(('autoencoded', f'{held_split}, autoencoded', held, through))
  for name, split, images, through in sets:
    images = images.subset(images.indices(recipe.evaluation.real_images))
    about = reference.describe(
      store.extractor,
      recipe.data.name,
      split,
      len(images),
      images.fingerprint,
      store.bank,
      images.shape,
    )
    file = store.folder / 'real' / f'{name.replace(" ", "_")}-{protocol.digest(about)}.npz'
    if storage.exists(file):
      out[name] = reference.read(file, store.extractor, 'remove it and evaluate again')
      continue
    running = measure.Running(store.extractor, len(images), store.bank)
    for index, found in images.batches(extractors.BATCH):
      stop.check()
      pixels = found['pixels'] if through is None else through(found['pixels'])
      features = extractors.extract(store.extractor, pixels)
      running.add(features, index, _classes(store.extractor, recipe, found['label']))
    out[name] = reference.Reference(running.measured(), about)
    storage.write_bytes(file, out[name].to_bytes())
  return out


# ---- cells


def _draw(recipe, store, names, images, stop, again) -> None:
  """Every cell that is not there, or is asked for again; process 0 says which those are."""
  work = np.zeros(len(names), np.int8)
  if not jax.process_index():
    store.clear_parts()  # of processes that were killed
    work = np.array([_work(store, name, images, c in again) for c, name in names.items()], np.int8)
    short = sum(
      w == _DRAW and c not in again and storage.exists(keeping.pictures(store.workdir, names[c]))
      for c, w in zip(names, work, strict=True)
    )
    if short:
      progress.say(
        f'{short} cells keep fewer than their {images:,} pictures (evaluation.keep_images) and are '
        f'drawn anew, to be measured by {store.extractor.name}'
      )
  parallel.barrier('the cells to draw are known', hours=48)
  work = dict(zip(names, parallel.from_first(work), strict=True))
  todo = sorted((c for c, w in work.items() if w), key=lambda c: (c.folder, c.sampler))
  total = sum(c.num_steps * images for c in todo)
  sampler, made_for, done, prompts = None, None, 0, encode.prompts(recipe)
  with progress.Progress('drawing the grid', total) as bar:
    # One compiled sampler at a time, for all its N and w.
    for cell in todo:
      stop.check()
      if work[cell] == _MEASURE:
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
    return _DRAW
  if store.has(name):
    return _NOTHING
  return _MEASURE if store.kept(name) >= images else _DRAW


def _measure_again(recipe, store, name, images, stop) -> None:
  """Measures pictures that are all kept, where only the measure by this extractor is missing."""
  pixels = keeping.read(keeping.pictures(store.workdir, name))['pixels']
  known = _classes(store.extractor, recipe, grids.labels(recipe, images))
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
  known = _classes(extractor, recipe, labels)
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
  none = _as_latents(recipe, np.zeros((0, *model.image_shape(recipe.model))))
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
  parallel.barrier(f'{name} is drawn', hours=48)
  sharing = parallel.from_everyone(part is not None)
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
  folder = model.read_folder(cell.folder)
  if before is not None and before.serves(folder, cell.sampler):
    return before.with_params(folder)
  made = sampling.Sampler(folder, cell.sampler, batch)
  return made.with_prompts(prompts) if prompts else made


# ---- rows


def _rows(recipe, store, names, images, grid, stop) -> tuple[list[dict], list[dict]]:
  """(those of the real images, those of the cells)."""
  real = _real(recipe, store, stop)
  seen, held = real['training'], real['held out']
  cards = {f: checkpoints.read_card(f) for f in {c.folder for c in names}}
  shared = {
    'grid': grid,
    'images': images,
    'reference_steps': next(iter(names)).num_steps,
    'teacher_checkpoint': cards[next(iter(names)).folder]['params_digest'],
    'distance': store.extractor.distance,
    **seen.protocol,
    'held_out_split': held.protocol['reference_split'],
    'held_out_images': _count(held),
    'pictures_resize': 'none',
    'rounding': 'to uint8',
    'clipping': 'none' if recipe.latent else 'x_hat to [-1, 1] at every step',
    'labels': grids.labels_in_words(recipe, images, encode.prompts(recipe)),
    'bank': recipe.evaluation.bank,
  }

  def figures(found):
    bank = found.ordered_bank
    return {
      **measure.figures(found, seen.measured, seen.support),
      'fd_held_out': statistics.frechet_distance(found.features, held.measured.features),
      'nearest_training': _median(bank, seen.support),
      'nearest_held_out': _median(bank, held.support),
    }

  digest = keeping.digest(seen.protocol, held.protocol)

  data_row = {'model': 'data', 'stage': None, 'sampler': None, 'num_steps': 0, 'w': None}
  data_row |= {'network_calls': 0, 'fd_teacher': None, 'rms_teacher': None, 'rms_latents': None}
  data_row |= {'seconds_per_image': None, 'versions': protocol.versions_in_words(), **shared}
  # What drawing perfectly would score: images nobody trained on, in latent space autoencoded ones.
  about = [
    {**data_row, **figures(r.measured), 'set': split, 'images': _count(r)}
    for split, r in real.items()
  ]
  rows, targets = [], {}
  for cell, name in names.items():
    stop.check()
    stored, card = store.read(name), cards[cell.folder]
    target, first = targets.setdefault(cell.w, (name, stored))  # the reference is first
    pairs = 0 if cell.first_seed else min(len(stored['pixels']), len(first['pixels']))
    rows.append({
      'model': cell.model,
      'stage': card['stage'],
      'sampler': cell.sampler,
      'num_steps': cell.num_steps,
      'w': cell.w,
      'network_calls': cell.num_steps * (2 if card['guided'] else 1),
      **_figures(store, name, target, figures, store.figures(name, target, digest)),
      'rms_teacher': _paired(stored, first, 'pixels', pairs),
      'rms_latents': _paired(stored, first, 'latents', pairs),
      'rms_images': pairs,
      'seeds': f'{cell.first_seed}..{cell.first_seed + images - 1}',
      'seconds_per_image': float(stored['seconds_per_image']),
      'round': storage.path(cell.folder).name,
      'guided': card['guided'],
      'checkpoint': card['params_digest'],
      'cell': name,
      'versions': str(stored.get('versions', 'not noted')),
      **shared,
    })  # fmt: skip
  return about, rows


def _paired(stored, first, what: str, pairs: int) -> float | None:
  """Root mean square difference to the reference's pictures, or latents, of equal seeds."""
  if not pairs or what not in stored:
    return None
  return statistics.rms(*(a[what][:pairs] for a in (stored, first)))


def _figures(store, name, target, figures, file) -> dict:
  """Of one cell: seconds of work in 2,048 dimensions, so they are kept in `file`."""
  try:
    known = storage.read_json(file) if storage.exists(file) else None
    if isinstance(known, dict):
      return known
  except errors.CheckpointError:
    pass  # damaged: they are computed anew
  found, target_found = store.read_measure(name), store.read_measure(target)
  distance = statistics.frechet_distance(found.features, target_found.features)
  row = {**figures(found), 'fd_teacher': distance}
  storage.write_json(file, row)
  return row


def _count(one: reference.Reference) -> int:
  """How many pictures were measured."""
  return int(one.measured.features.count)


def _median(points: np.ndarray, support: precision_recall.Support | None) -> float | None:
  if support is None or not len(points):
    return None
  return float(np.median(precision_recall.nearest_distances(points, support.points)))


def write(workdir: Any, rows: list[dict]) -> None:
  """The page, and a line that says where it is."""
  workdir = storage.path(workdir)
  page.write(workdir)
  progress.say(
    f'{len(rows)} rows in {workdir}/report/metrics.json, page {workdir}/report/index.html'
  )
