"""Tests of the list of cells: which models, samplers, N and w a grid has."""

import micro
import pytest

from gdistill.evaluation.grid import run as grid_run
from gdistill.training import assemble


@pytest.mark.parametrize(
  ('grid', 'reference', 'dpm'), [('quick', 16, 4), ('full', 32, 8), ('quick', 3, 1)]
)
def test_a_grid_holds_every_w_at_every_number_of_steps(tmp_path, grid, reference, dpm):
  recipe = micro.recipe(evaluation={f'{grid}_reference_steps': reference})
  run = assemble.Run(recipe, tmp_path)
  cells = grid_run.list_cells(run, grid_run.of_size(run, grid))
  found = {(c.model, c.sampler, c.num_steps, c.w) for c in cells}
  ws = (0.0, 2.0)
  expected = {('teacher', s, n, w) for s in ('ddim', 'dpm_solver') for n in (1, 2) for w in ws}
  expected |= {('student', 'ddim', n, w) for n in (1, 2) for w in ws}
  expected |= {('teacher', 'ddim', reference, w) for w in ws}
  expected |= {('teacher', 'dpm_solver', dpm, w) for w in ws}
  if grid == 'full':  # also the reference from other seeds, and the student of stage one
    expected |= {('floor', 'ddim', reference, w) for w in ws}
    expected |= {('student', 'ddim', n, w) for n in (reference, 1, 2) for w in ws}
    [first] = {c.first_seed for c in cells if c.model == 'floor'}
    assert first == recipe.evaluation.full_images
    assert sum(c.folder.endswith('01_guidance') for c in cells) == 3 * len(ws)
    cells = [
      c for c in cells if not (c.folder.endswith('01_guidance') and c.num_steps != reference)
    ]
  assert found == expected and len(cells) == len(expected)
  assert [(c.num_steps, c.w) for c in cells[:2]] == [(reference, w) for w in ws]  # the reference
