"""The cells of the w x N grid of a run: which there are, their names and their labels."""

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
  """What a grid of w x N measures: quick after every training, full for published figures."""

  name: str  # 'quick' or 'full'
  ws: tuple[float, ...]
  num_steps: tuple[int, ...]
  images: int  # of each cell
  reference_steps: int  # DDIM steps of the guided teacher that all cells are compared with
  student_sampler: str  # the sampler of the distilled students
  student_ws: tuple[float, ...]  # the w that the students were trained for


@dataclasses.dataclass(frozen=True)
class Cell:
  """One place of the grid: a model, its sampler, N, w, and the seed of its first picture."""

  model: str  # 'teacher', 'student', or 'floor': the reference drawn from other seeds
  folder: str
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
  """Returns the cells of a grid: the guided teacher with two samplers, each student with its own.

  The first len(ws) cells are the reference: the guided teacher with many DDIM steps. DPM-Solver++
  is of second order, so its own longest walk has a quarter of these steps. The full grid also has
  the floor, which is the reference from other seeds, and the student of stage one.
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
  """Returns a name for each cell; two names are equal if and only if the pictures are.

  A name holds a digest of the parameters, but not of the decoder of latents, which is the run's.
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
  """Returns the cells with the attributes {'model': ..., 'num_steps': ...} of `again`.

  Raises ConfigError if no cell has them.
  """
  if not again:
    return set()
  found = {c for c in cells if all(getattr(c, k) == v for k, v in again.items())}
  if not found:
    asked = ', '.join(f'--{k}={v}' for k, v in again.items())
    have = {k: sorted({getattr(c, k) for c in cells}) for k in again}
    raise errors.ConfigError(f'{asked} is no cell of this grid, which has {have}')
  return found


def labels(num_classes: int, images: int) -> np.ndarray:
  """Returns the label of every image: image i has label i mod classes."""
  return (np.arange(images) % num_classes).astype(np.int32)


def labels_in_words(num_classes: int, images: int, prompts: Sequence[str] = ()) -> str:
  """Returns the rule of `labels`, or of prompts, as a row of figures quotes it."""
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
