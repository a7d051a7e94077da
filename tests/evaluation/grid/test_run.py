"""Which cells a grid has, and whose teacher it is measured against."""

import pathlib

import micro
import pytest

from gdistill import errors
from gdistill.evaluation.grid import cells as grids
from gdistill.evaluation.grid import run as grid_run
from gdistill.recipe import reading
from gdistill.training import assemble
from gdistill.workdir import finished as finished_rounds
from gdistill.workdir import storage


@pytest.mark.parametrize('initial', ['first/01_guidance', 'second/00_progressive_2'])
def test_the_teacher_of_a_run_begun_elsewhere_is_found_through_the_cards(
  tmp_path, monkeypatch, initial
):
  # first/00_teacher <- first/01_guidance <- second/00_progressive_2 <- the run in question
  first, second = tmp_path / 'first', tmp_path / 'second'
  cards = {
    first / '00_teacher': {'stage': 'teacher', 'teacher': ''},
    first / '01_guidance': {'stage': 'guidance', 'teacher': '00_teacher'},
    second / '00_progressive_2': {'stage': 'progressive', 'teacher': str(first / '01_guidance')},
  }
  monkeypatch.setattr(finished_rounds, 'read_card', lambda folder: cards[pathlib.Path(folder)])
  monkeypatch.setattr(finished_rounds, 'is_finished', lambda folder: pathlib.Path(folder) in cards)
  recipe = micro.recipe(stages=('progressive',), initial=str(tmp_path / initial))
  run = assemble.Run(recipe, tmp_path / 'third')
  found = run.teacher_folder
  assert str(found) == str(first / '00_teacher')
  del cards[first / '00_teacher']
  with pytest.raises(errors.ConfigError, match=r'descends from .*00_teacher.*copy that round'):
    run.teacher_folder  # noqa: B018


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
  if grid == 'full':  # the reference from other seeds, and the student of stage one alone
    expected |= {('floor', 'ddim', reference, w) for w in ws}
    expected |= {('student', 'ddim', n, w) for n in (reference, 1, 2) for w in ws}
    [first] = {c.first_seed for c in cells if c.model == 'floor'}
    assert first == recipe.evaluation.full_images
    assert sum(c.folder.endswith('01_guidance') for c in cells) == 3 * len(ws)
    cells = [
      c for c in cells if not (c.folder.endswith('01_guidance') and c.num_steps != reference)
    ]
  assert found == expected and len(cells) == len(expected)
  assert [(c.num_steps, c.w) for c in cells[:2]] == [(reference, w) for w in ws]  # it comes first


def test_a_report_keeps_the_full_grid_while_all_of_it_is_there(tmp_path, monkeypatch):
  recipe, workdir = micro.recipe(), storage.path(tmp_path)
  run = assemble.Run(recipe, workdir)
  names = {'cell 1': 'a', 'cell 2': 'b'}
  monkeypatch.setattr(grids, 'list_cells', lambda *args: list(names))
  monkeypatch.setattr(grids, 'names', lambda cells, images: names)
  storage.write_json(workdir / 'config.json', reading.to_dict(recipe))
  full = [{'grid': 'full', 'cell': name} for name in 'ab']
  assert grid_run.full_rows(run) == []  # no report yet
  storage.write_json(workdir / 'report' / 'metrics.json', full)
  storage.write_bytes(workdir / 'evaluation' / 'cells' / 'a.npz', b'')
  assert grid_run.full_rows(run) == []  # the cell of a row is gone
  storage.write_bytes(workdir / 'evaluation' / 'cells' / 'b.npz', b'')
  assert grid_run.full_rows(run) == full
  names['cell 2'] = 'c'  # of another round, or at another w
  storage.write_bytes(workdir / 'evaluation' / 'cells' / 'c.npz', b'')
  assert grid_run.full_rows(run) == []
