"""The cells of the w x N grid of a run, their names, and the teacher they are set against."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from gdistill import errors
from gdistill.drawing import sampling
from gdistill.recipe import settings as recipes
from gdistill.rounds import plan as plans
from gdistill.workdir import finished as finished_rounds
from gdistill.workdir import storage


@dataclasses.dataclass(frozen=True)
class Cell:
  """One figure of the grid: a model, its sampler, N, w, and the seed of its first picture."""

  model: str  # 'teacher', 'student', or 'floor': the reference from other seeds
  folder: str
  sampler: str
  num_steps: int
  w: float
  first_seed: int = 0


def plan(recipe: recipes.Recipe, workdir: storage.epath.Path, grid: str) -> list[Cell]:
  """The cells of a grid: the guided teacher with two samplers, every student with its own.

  The first len(ws) cells are the reference: the guided teacher's many DDIM steps. DPM-Solver++,
  which is of second order, has a quarter as many for its own longest walk. The full grid also has
  the floor, which is the reference from other seeds, and the student of stage one alone.
  """
  e = recipe.evaluation
  reference = e.quick_reference_steps if grid == 'quick' else e.full_reference_steps
  teacher = str(teacher_folder(recipe, workdir))
  cells = [Cell('teacher', teacher, 'ddim', reference, w) for w in e.ws]
  for sampler, most in (('ddim', reference), ('dpm_solver', max(1, reference // 4))):
    for n in (most, *e.num_steps):
      cells += [Cell('teacher', teacher, sampler, n, w) for w in e.ws]
  if grid == 'full':
    first = images(recipe, grid)
    cells += [Cell('floor', teacher, 'ddim', reference, w, first) for w in e.ws]
  own = sampling.own_sampler({'sampler': recipe.progressive.sampler})
  ws = [w for w in e.ws if recipe.guidance.w_min <= w <= recipe.guidance.w_max]
  for r in plans.plan(recipe):
    folder = str(workdir / r.name)
    if r.stage == 'progressive' and r.num_steps in e.num_steps:
      cells += [Cell('student', folder, own, r.num_steps, w) for w in ws]
    elif r.stage == 'guidance' and grid == 'full':
      for n in (reference, *e.num_steps):
        cells += [Cell('student', folder, 'ddim', n, w) for w in ws]
  return list(dict.fromkeys(cells))


def images(recipe: recipes.Recipe, grid: str) -> int:
  """Of a cell."""
  return recipe.evaluation.quick_images if grid == 'quick' else recipe.evaluation.full_images


def teacher_folder(recipe: recipes.Recipe, workdir: storage.epath.Path) -> storage.epath.Path:
  """The guided teacher a run descends from, here or behind its `initial` folder."""
  if recipe.stages[:1] == ('teacher',):
    return workdir / plans.plan(recipe)[0].name
  folder = storage.path(recipe.initial)
  card = finished_rounds.read_card(folder)
  while card['stage'] != 'teacher':
    before = card['teacher']  # a round beside this one by its name, another run's by its path
    folder = storage.path(before) if '/' in before else folder.parent / before
    if not finished_rounds.is_finished(folder):
      raise errors.ConfigError(
        f'initial={recipe.initial!r} descends from {folder}, which is not there; copy that round '
        'too: the report measures against the guided teacher'
      )
    card = finished_rounds.read_card(folder)
  return folder


def names(cells: list[Cell], images: int) -> dict[Cell, str]:
  """A name for each, the same exactly when the pictures are: it holds the parameters' digest.

  What decodes latents is not in it: it is that of the run.
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
  """The cells that are asked for by {'model': ..., 'num_steps': ...}; ConfigError for none."""
  if not again:
    return set()
  found = {c for c in cells if all(getattr(c, k) == v for k, v in again.items())}
  if not found:
    asked = ', '.join(f'--{k}={v}' for k, v in again.items())
    have = {k: sorted({getattr(c, k) for c in cells}) for k in again}
    raise errors.ConfigError(f'{asked} is no cell of this grid, which has {have}')
  return found


def labels(recipe: recipes.Recipe, images: int) -> np.ndarray:
  """Exactly balanced where `images` allows it: image i has label i mod classes."""
  return (np.arange(images) % recipe.model.num_classes).astype(np.int32)


def labels_in_words(recipe: recipes.Recipe, images: int, prompts: Sequence[str] = ()) -> str:
  if prompts:
    digest = hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest()[:12]
    return f'image i has prompt i mod {len(prompts)} of those of digest {digest}'
  classes = recipe.model.num_classes
  if images % classes == 0:
    return 'balanced: image i has label i mod classes'
  if images > classes:
    return f'image i has label i mod classes; {images} images do not divide over {classes} classes'
  return f'image i has label i: only {images} of {classes} classes'
