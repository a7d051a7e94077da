"""Tests of drawing a grid: the figures do not depend on devices, processes or kept pictures."""

import dataclasses
import json
import shutil

import grids
import latent_runs
import micro
import numpy as np
import pytest
import stand_in

from gdistill import errors
from gdistill.drawing import sampling
from gdistill.evaluation.grid import cell_store
from gdistill.evaluation.grid import cells as grid_cells
from gdistill.evaluation.grid import draw_and_measure
from gdistill.process import interrupt
from gdistill.rounds import folder as folders
from gdistill.training import assemble
from gdistill.workdir import storage

PHOTOS, TEXT, _, SD = latent_runs.KINDS


@pytest.mark.full
def test_pictures_may_leave_the_devices_or_stay_there(workdir, capsys):
  """The number of kept pictures changes no figure, but few are not enough for a new measure."""
  whole = micro.evaluate(workdir)
  cells = {p.name: np.load(p)['pixels'] for p in (workdir / 'evaluation' / 'cells').iterdir()}
  assert {len(pixels) for pixels in cells.values()} == {20}
  for made in ('cells', 'measured', 'figures'):
    shutil.rmtree(workdir / 'evaluation' / made)
  few = micro.evaluate(workdir, change=lambda c: c['evaluation'].update(keep_images=3))
  for p in (workdir / 'evaluation' / 'cells').iterdir():
    np.testing.assert_array_equal(np.load(p)['pixels'], cells[p.name][:3])
  assert {r['rms_images'] for r in few} == {3} and {r['rms_images'] for r in whole} == {20}
  unlike = dict.fromkeys(('rms_teacher', 'rms_images'))
  grids.compare([{**r, **unlike} for r in few], [{**r, **unlike} for r in whole])
  capsys.readouterr()
  # The stored measures do not serve a bank of another size.
  again = micro.evaluate(workdir, change=lambda c: c['evaluation'].update(keep_images=3, bank=7))
  assert f'{len(again)} cells keep fewer than their 20 pictures' in capsys.readouterr().err
  assert [r['fd'] for r in again] == pytest.approx([r['fd'] for r in few], rel=1e-5, abs=1e-5)
  assert {r['bank'] for r in again} == {7}


@pytest.mark.full
def test_one_two_and_eight_devices_give_the_same_figures(workdir):
  found = []
  for count in (1, 2, 8):
    config = json.loads((workdir / 'config.json').read_text())
    config['mesh']['cpu_devices'] = count
    (workdir / 'config.json').write_text(json.dumps(config))
    # The classifier stays, because training it beside other devices may change its last bits.
    for made in ('cells', 'measured', 'figures'):
      shutil.rmtree(workdir / 'evaluation' / made, ignore_errors=True)
    grids.finish(grids.command(workdir))
    found.append(grids.rows_of(workdir))
  grids.compare(found[1], found[0])
  grids.compare(found[2], found[0])


@pytest.mark.full
def test_a_process_may_have_nothing_to_draw(workdir):
  """20 pictures make one batch of 32, so the first of two processes draws all of them."""
  expected = micro.evaluate(workdir)
  shutil.rmtree(workdir / 'evaluation')  # also the classifier, so that one process trains it
  grids.finish(*grids.start(workdir, 2, '--config.evaluation.batch_size=32'))
  grids.compare(grids.rows_of(workdir), json.loads(json.dumps(storage.jsonable(expected))))


def test_all_cells_are_drawn_for_the_prompts_of_the_run(tmp_path, monkeypatch):
  given = latent_runs.inputs(tmp_path / 'given')
  recipe = latent_runs.recipe(SD, given)
  parts = assemble.Run(recipe)
  held, prompts = parts.pictures[1], parts.prompts
  assert prompts == list(dict.fromkeys(held.read.caption(i) for i in range(4)))
  assert len(prompts) > 1
  names = ['the big cat', 'the dog', 'the eel']
  assert assemble.Run(latent_runs.recipe(TEXT, given)).prompts == names
  assert assemble.Run(latent_runs.recipe(PHOTOS, given)).prompts == []

  class Stands:  # the sampler of an imported teacher, which has no prompts of its own
    num_prompts = 1

    def __init__(self, *given):
      pass

    def with_prompts(self, prompts):
      self.num_prompts = prompts
      return self

  monkeypatch.setattr(sampling, 'Sampler', Stands)
  monkeypatch.setattr(folders, 'read_folder', lambda folder: None)
  cell = grid_cells.Cell('teacher', 'somewhere', 'ddim', 1, 2.0)
  drawing = draw_and_measure.Drawing(8, 8, 8, 1, prompts, (16, 16, 3), (8, 8, 4))
  without = dataclasses.replace(drawing, prompts=[])
  store = cell_store.Store(storage.path(tmp_path), stand_in.extractor(), 8)
  drawn = []
  share = lambda store, sampler, *rest: drawn.append(sampler.num_prompts)
  monkeypatch.setattr(draw_and_measure, 'draw_share', share)
  monkeypatch.setattr(cell_store.Store, 'write', lambda *given: None)
  for one in (drawing, without):
    draw_and_measure.draw_missing(store, {cell: 'cell'}, one, set(), interrupt.Interrupt())
  assert drawn == [prompts, 1]


def test_latents_too_large_for_a_cell_are_refused():
  drawing = draw_and_measure.Drawing(4, 2, 3, 10, [], (2, 2, 3), (1, 1, 1))
  kept, pixels = draw_and_measure._Kept(drawing), np.zeros((2, 2, 2, 3), np.uint8)
  kept.add(np.arange(2), pixels, np.full((2, 1, 1, 1), 65504.0, np.float32))
  kept.add(np.arange(2, 4), pixels, np.array([1.0, 1e6], np.float32).reshape(2, 1, 1, 1))
  assert kept.arrays()[1].shape == (3, 1, 1, 1)  # picture 3 is not kept
  with pytest.raises(errors.NumericsError, match='latents beyond 65504, the largest number of'):
    kept.add(np.arange(2), pixels, np.array([1.0, 1e6], np.float32).reshape(2, 1, 1, 1))
