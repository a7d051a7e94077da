"""The rows of report/metrics.json: a cell's metrics and the protocol by which it was measured."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from gdistill import errors
from gdistill.evaluation import protocol
from gdistill.evaluation import reference
from gdistill.evaluation.figures import measure
from gdistill.evaluation.figures import precision_recall
from gdistill.evaluation.figures import statistics
from gdistill.evaluation.grid import cell_store
from gdistill.evaluation.grid import cells as grid_cells
from gdistill.evaluation.grid import draw_and_measure
from gdistill.process import interrupt
from gdistill.workdir import finished as finished_rounds
from gdistill.workdir import storage

Row = dict[str, Any]
References = Mapping[str, reference.Reference]


def make_rows(
  grid: str,
  store: cell_store.Store,
  names: Mapping[grid_cells.Cell, str],
  drawing: draw_and_measure.Drawing,
  real: References,
  stop: interrupt.Interrupt,
) -> tuple[list[Row], list[Row]]:
  """Returns (rows of real images for report/data.json, rows of cells for report/metrics.json)."""
  cards = {f: finished_rounds.read_card(f) for f in {c.folder for c in names}}
  shared = _shared(grid, store, names, drawing, real, cards)
  data = [_data_row(split, one, real, shared) for split, one in real.items()]
  rows, targets = [], {}
  for cell, name in names.items():
    stop.check()
    stored, card = store.read(name), cards[cell.folder]
    # The first cell of each w is the reference cell: the guided teacher with many steps.
    target, first = targets.setdefault(cell.w, (name, stored))
    pairs = 0 if cell.first_seed else min(len(stored['pixels']), len(first['pixels']))
    rows.append({
      'model': cell.model,
      'stage': card['stage'],
      'sampler': cell.sampler,
      'num_steps': cell.num_steps,
      'w': cell.w,
      'network_calls': cell.num_steps * (2 if card['guided'] else 1),
      **_figures_of_cell(store, name, target, real),
      'rms_teacher': _paired(stored, first, 'pixels', pairs),
      'rms_latents': _paired(stored, first, 'latents', pairs),
      'rms_images': pairs,
      'seeds': f'{cell.first_seed}..{cell.first_seed + drawing.images - 1}',
      'seconds_per_image': float(stored['seconds_per_image']),
      'round': storage.path(cell.folder).name,
      'guided': card['guided'],
      'checkpoint': card['params_digest'],
      'cell': name,
      'versions': str(stored.get('versions', 'not noted')),
      **shared,
    })  # fmt: skip
  return data, rows


def _shared(
  grid: str,
  store: cell_store.Store,
  names: Mapping[grid_cells.Cell, str],
  drawing: draw_and_measure.Drawing,
  real: References,
  cards: Mapping[str, dict],
) -> Row:
  """Returns the keys and values that all rows of cells share: how the metrics were measured."""
  teacher, held = next(iter(names)), real['held out']
  latent = drawing.latent_shape is not None
  return {
    'grid': grid,
    'images': drawing.images,
    'reference_steps': teacher.num_steps,
    'teacher_checkpoint': cards[teacher.folder]['params_digest'],
    'distance': store.extractor.distance,
    **real['training'].protocol,
    'held_out_split': held.protocol['reference_split'],
    'held_out_images': _count(held),
    'pictures_resize': 'none',
    'rounding': 'to uint8',
    'clipping': 'none' if latent else 'x_hat to [-1, 1] at every step',
    'labels': grid_cells.labels_in_words(drawing.num_classes, drawing.images, drawing.prompts),
    'bank': store.bank,
  }


def _data_row(split: str, one: reference.Reference, real: References, shared: Row) -> Row:
  """Returns the row with the metrics of a set of real images, to compare models' metrics with.

  `split` is the name of the set: 'held out' (images that no model was trained on), 'training', or
  in latent space 'autoencoded' (held-out images, encoded and decoded by the autoencoder).
  """
  row = {'model': 'data', 'stage': None, 'sampler': None, 'num_steps': 0, 'w': None}
  row |= {'network_calls': 0, 'fd_teacher': None, 'rms_teacher': None, 'rms_latents': None}
  row |= {'seconds_per_image': None, 'versions': protocol.versions_in_words(), **shared}
  return {**row, **_figures(one.measured, real), 'set': split, 'images': _count(one)}


def _figures(found: measure.Measured, real: References) -> Row:
  """Returns {metric: number} of a set of pictures compared with training and held-out images."""
  seen, held, bank = real['training'], real['held out'], found.ordered_bank
  return {
    **measure.figures(found, seen.measured, seen.support),
    'fd_held_out': statistics.frechet_distance(found.features, held.measured.features),
    'nearest_training': _median_distance(bank, seen.support),
    'nearest_held_out': _median_distance(bank, held.support),
  }


def _figures_of_cell(store: cell_store.Store, name: str, target: str, real: References) -> Row:
  """Returns a cell's metrics against real images, and its FD to the reference cell `target`.

  The metrics are stored in the workdir, because computing them takes seconds for each cell.
  """
  digest = cell_store.digest(real['training'].protocol, real['held out'].protocol)
  file = store.figures(name, target, digest)
  try:
    known = storage.read_json(file) if storage.exists(file) else None
    if isinstance(known, dict):
      return known
  except errors.CheckpointError:
    pass  # the JSON file is damaged, so the metrics are computed again
  found, target_found = store.read_measure(name), store.read_measure(target)
  distance = statistics.frechet_distance(found.features, target_found.features)
  row = {**_figures(found, real), 'fd_teacher': distance}
  storage.write_json(file, row)
  return row


def _paired(stored: Row, first: Row, what: str, pairs: int) -> float | None:
  """Returns the RMS difference between the first `pairs` pictures of a cell and the reference cell.

  Each picture is compared with the reference cell's picture that has the same seed.
  `stored` and `first` are the arrays of the cell and of the reference cell; `what` is 'pixels' or
  'latents'. Returns None if `pairs` is 0 or the array `what` is missing.
  """
  if not pairs or what not in stored:
    return None
  return statistics.rms(*(a[what][:pairs] for a in (stored, first)))


def _count(one: reference.Reference) -> int:
  """Returns the number of pictures that the reference statistics were measured on."""
  return int(one.measured.features.count)


def _median_distance(points: np.ndarray, support: precision_recall.Support | None) -> float | None:
  """Returns the median distance from features `points` to the nearest real image's features."""
  if support is None or not len(points):
    return None
  return float(np.median(precision_recall.nearest_distances(points, support.points)))
