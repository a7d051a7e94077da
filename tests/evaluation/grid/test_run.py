"""Tests of a run's grid: a report of the full grid stays, and a killed evaluation resumes."""

import dataclasses
import json
import shutil
import signal

import grids
import micro
import pytest
import waits

from gdistill import errors
from gdistill.evaluation.grid import cells as grid_cells
from gdistill.evaluation.grid import run as grid_run
from gdistill.recipe import reading
from gdistill.training import assemble
from gdistill.training import checks as run_checks
from gdistill.workdir import storage


def cells(recipe, workdir, size):
  run = assemble.Run(recipe, workdir)
  return grid_run.list_cells(run, grid_run.of_size(run, size))


@pytest.mark.full
def test_encoders_are_in_no_cell_and_no_evaluation_waits_for_them(trained):
  recipe, workdir = micro.recipe(), storage.path(trained)
  more = dataclasses.replace(recipe, encoder=True)
  for which in ('quick', 'full'):
    assert cells(more, workdir, which) == cells(recipe, workdir, which)
  one = {'model': 'student', 'num_steps': 3}  # looked up after the check of the rounds
  with pytest.raises(errors.ConfigError, match='at --model=student, --num_steps=3; choose'):
    micro.evaluate(workdir, change=lambda config: config.update(encoder=True), again=one)
  only = dataclasses.replace(more, stages=(), initial=str(trained / '01_guidance'))
  assert assemble.Run(only, 'elsewhere').teacher_folder == workdir / '00_teacher'
  assert {c.model for c in cells(only, workdir, 'full')} == {'teacher', 'floor'}
  others = dataclasses.replace(recipe.evaluation, num_steps=(64,))
  run_checks.grid(assemble.Run(dataclasses.replace(only, evaluation=others)))


def test_a_report_keeps_the_full_grid_while_all_of_it_is_there(tmp_path, monkeypatch):
  recipe, workdir = micro.recipe(), storage.path(tmp_path)
  run = assemble.Run(recipe, workdir)
  names = {'cell 1': 'a', 'cell 2': 'b'}
  monkeypatch.setattr(grid_cells, 'list_cells', lambda *args: list(names))
  monkeypatch.setattr(grid_cells, 'names', lambda cells, images: names)
  storage.write_json(workdir / 'config.json', reading.to_dict(recipe))
  full = [{'grid': 'full', 'cell': name} for name in 'ab']
  assert grid_run.full_rows(run) == []  # there is no report yet
  storage.write_json(workdir / 'report' / 'metrics.json', full)
  storage.write_bytes(workdir / 'evaluation' / 'cells' / 'a.npz', b'')
  assert grid_run.full_rows(run) == []  # the file of cell b is missing
  storage.write_bytes(workdir / 'evaluation' / 'cells' / 'b.npz', b'')
  assert grid_run.full_rows(run) == full
  names['cell 2'] = 'c'  # the name of a cell in another round or at another w
  storage.write_bytes(workdir / 'evaluation' / 'cells' / 'c.npz', b'')
  assert grid_run.full_rows(run) == []


@pytest.mark.full
@pytest.mark.parametrize('processes', [1, 2])
def test_killed_in_the_middle_it_goes_on_and_ends_with_the_same_figures(
  workdir, tmp_path, processes
):
  expected = micro.evaluate(workdir, 'full')
  for made in ('cells', 'measured', 'figures'):
    shutil.rmtree(workdir / 'evaluation' / made)
  children = grids.start(workdir, processes, '--grid=full', cells=5)
  ended = lambda: any(c.poll() is not None for c in children)
  waits.until(lambda: len(grids.cells_of(workdir)) == 5 or ended())
  assert not ended(), children[0].communicate()[0]
  for child in children:
    child.send_signal(signal.SIGKILL)
  for child in children:
    child.communicate()
  before = grids.cells_of(workdir)
  assert len(before) == 5 < len(expected)
  for lock in workdir.glob('lock.json'):
    lock.unlink()  # the lease of a killed process lasts a minute
  again = grids.start(workdir, processes, '--grid=full')
  grids.finish(*again)
  after = grids.cells_of(workdir)
  assert all(after[name] == at for name, at in before.items())  # not drawn again
  assert len(after) == len(expected)
  assert not list((workdir / 'evaluation').glob('parts/*'))
  grids.compare(grids.rows_of(workdir), json.loads(json.dumps(storage.jsonable(expected))))
