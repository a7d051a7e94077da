"""Lists and names the cells of a run's grid (one model, sampler, number of steps and w each)."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from gdistill import errors
from gdistill.rounds import plan as plans
from gdistill.workdir import finished as finished_rounds
from gdistill.workdir import storage


@dataclasses.dataclass(frozen=True)
class Grid:
  """The extent of a grid: every w and number of steps to measure, and the number of images a cell.

  The quick grid is measured after every training; the full grid gives the numbers to publish.
  """

  name: str  # size of the grid, 'quick' or 'full'
  ws: tuple[float, ...]
  num_steps: tuple[int, ...]
  images: int  # number of pictures sampled for each cell
  reference_steps: int  # DDIM steps of the teacher in the reference cells
  student_sampler: str  # the sampler of the students of stage two (progressive)
  student_ws: tuple[float, ...]  # the values of `ws` that the students were trained for


@dataclasses.dataclass(frozen=True)
class Cell:
  """One cell of the grid: model, sampler, number of steps, w, and the seed of the first picture.

  The model 'floor' is the teacher, sampled like the reference cells but from other seeds, so the
  distance of 'floor' to the reference cells is the distance that chance alone gives.
  """

  model: str  # the kind of model: 'teacher', 'student' or 'floor'
  folder: str  # the folder of the finished round that holds the model
  sampler: str
  num_steps: int
  w: float
  first_seed: int = 0


def list_cells(
  grid: Grid,
  plan: Sequence[plans.Round],
  workdir: storage.epath.Path,
  teacher_folder: storage.epath.Path,
) -> list[Cell]:
  """Returns the cells of a grid, each one model, sampler, number of steps and w.

  - The first len(ws) cells are the reference cells: the guided teacher with many DDIM steps.
  - The guided teacher is also sampled in `num_steps` steps, by DDIM and by DPM-Solver++.
  - DPM-Solver++, a solver of second order, also takes a quarter of the reference cells' steps.
  - Students of stage two (progressive halving of the steps) are sampled by `student_sampler`.
  - The full grid also has the model 'floor': the teacher sampled from other seeds.
  - The full grid also has the student of stage one (guidance distillation).
  """
  teacher, reference = str(teacher_folder), grid.reference_steps
  cells = [Cell('teacher', teacher, 'ddim', reference, w) for w in grid.ws]
  for sampler, most in (('ddim', reference), ('dpm_solver', max(1, reference // 4))):
    for n in (most, *grid.num_steps):
      cells += [Cell('teacher', teacher, sampler, n, w) for w in grid.ws]
  if grid.name == 'full':
    cells += [Cell('floor', teacher, 'ddim', reference, w, grid.images) for w in grid.ws]
  for r in plan:
    folder = str(workdir / r.name)
    if r.stage == 'progressive' and r.num_steps in grid.num_steps:
      sampler = grid.student_sampler
      cells += [Cell('student', folder, sampler, r.num_steps, w) for w in grid.student_ws]
    elif r.stage == 'guidance' and grid.name == 'full':
      for n in (reference, *grid.num_steps):
        cells += [Cell('student', folder, 'ddim', n, w) for w in grid.student_ws]
  return list(dict.fromkeys(cells))


def names(cells: list[Cell], images: int) -> dict[Cell, str]:
  """Returns {cell: name}; two cells of a run that have equal names have equal pictures.

  A name ends with a digest of the model's parameters, the sampler, the number of steps, w, the
  number of images and the first seed. The decoder of the latents is left out of the digest, because
  all cells of a run share one decoder. `images` is the number of pictures of each cell.
  """
  digests = {f: finished_rounds.params_digest(f) for f in dict.fromkeys(c.folder for c in cells)}
  found = {}
  for c in cells:
    what = [digests[c.folder], c.sampler, c.num_steps, c.w, images, 'clip']
    if c.first_seed:
      what.append(c.first_seed)
    digest = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:12]
    found[c] = f'{c.model}-{c.sampler}-{c.num_steps}-w{c.w:g}-{digest}'
  return found


def matching(cells: list[Cell], again: dict[str, Any] | None) -> set[Cell]:
  """Returns the cells that have all values in `again`, such as {'model': 'student', 'w': 1.0}.

  Returns the empty set if `again` is None or empty. Raises ConfigError if no cell of the grid has
  all values in `again`.
  """
  if not again:
    return set()
  found = {c for c in cells if all(getattr(c, k) == v for k, v in again.items())}
  if not found:
    asked = ', '.join(f'--{k}={v}' for k, v in again.items())
    have = {k: sorted({getattr(c, k) for c in cells}) for k in again}
    raise errors.ConfigError(
      f'the evaluation grid has no measurement at {asked}; choose from the values of the grid: '
      f'{have}'
    )
  return found


def labels(num_classes: int, images: int) -> np.ndarray:
  """Returns the class label of each image: image i has label i mod num_classes."""
  return (np.arange(images) % num_classes).astype(np.int32)


def labels_in_words(num_classes: int, images: int, prompts: Sequence[str] = ()) -> str:
  """Returns the words by which a row of metrics says how images get labels or prompts."""
  if prompts:
    digest = hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest()[:12]
    return f'image i has prompt i mod {len(prompts)} of those of digest {digest}'
  if images % num_classes == 0:
    return 'balanced: image i has label i mod classes'
  if images > num_classes:
    return (
      f'image i has label i mod classes; {images} images do not divide over {num_classes} classes'
    )
  return f'image i has label i: only {images} of {num_classes} classes'
