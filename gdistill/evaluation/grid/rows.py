"""The rows of report/metrics.json: every cell's figures and how they were made."""

import numpy as np

from gdistill import errors
from gdistill.evaluation import protocol
from gdistill.evaluation import reference
from gdistill.evaluation.figures import measure
from gdistill.evaluation.figures import precision_recall
from gdistill.evaluation.figures import statistics
from gdistill.evaluation.grid import cell_store as keeping
from gdistill.evaluation.grid import cells as grids
from gdistill.evaluation.grid import real_images
from gdistill.frozen import encode
from gdistill.workdir import finished as finished_rounds
from gdistill.workdir import storage

# ---- rows


def make_rows(recipe, store, names, images, grid, stop) -> tuple[list[dict], list[dict]]:
  """(those of the real images, those of the cells)."""
  real = real_images.measure_real(recipe, store, stop)
  seen, held = real['training'], real['held out']
  cards = {f: finished_rounds.read_card(f) for f in {c.folder for c in names}}
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
