"""Tests of gdistill sample: the command repeated, stopped, started twice; what is not finite."""

import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from gdistill import errors
from gdistill import notebook
from gdistill.cli import sample
from gdistill.data import images
from gdistill.drawing import sampling
from gdistill.rounds import folder as folders
from gdistill.workdir import finished as finished_rounds
from gdistill.workdir import ledger
from gdistill.workdir import storage


@pytest.fixture(scope='module')
def workdir(micro_run, tmp_path_factory):
  return shutil.copytree(micro_run, tmp_path_factory.mktemp('sample') / 'run')


@pytest.fixture(scope='module')
def overflowing(micro_run, tmp_path_factory):
  """Returns a finished round whose parameters are finite, and whose output overflows float32."""
  read = folders.read_folder(micro_run / '02_progressive_2')
  params = jax.tree.map(np.array, read.params)
  last = params['conv_out']['kernel']
  params['conv_out']['kernel'] = np.where(last == 0, 3e38, np.sign(last) * 3e38).astype(np.float32)
  folder = storage.path(tmp_path_factory.mktemp('broken') / 'round')
  card = {k: v for k, v in read.card.items() if k != 'params_digest'}
  finished_rounds.finish(folder, params, card)
  return folder


def given(workdir, out):
  folder = f'--folder={workdir}/02_progressive_2'
  return [folder, '--labels=1,2', '--seeds=0,1', '--scale=1', f'--out={out}']


def refuse(*args, **kwargs):
  raise AssertionError('a picture was drawn')


@pytest.mark.full
def test_the_command_repeated_has_nothing_to_do_and_draws_only_what_is_missing(
  workdir, tmp_path, capsys, monkeypatch
):
  argv, out = given(workdir, tmp_path / 'out'), tmp_path / 'out'
  assert sample.main(argv) == 0
  before = {f.name: f.read_bytes() for f in out.iterdir()}
  found = images.load(str(out))  # as the commands read the folder that come next
  assert len(found) == 4
  assert str(found.passed) == '1 contact sheet that gdistill wrote (such as grid.png)'
  assert len(before) == 6 and 'request.json' in before and 'lock.json' not in before
  ages = {f: f.stat().st_mtime_ns for f in out.glob('label*.png')}
  monkeypatch.setattr(sampling, 'Sampler', refuse)
  (out / 'grid.png').unlink()  # a kill after the last picture leaves such a folder
  capsys.readouterr()
  assert sample.main(argv) == 0
  assert f'nothing to do: all 4 pictures are in {out} already' in capsys.readouterr().err
  assert {f.name: f.read_bytes() for f in out.iterdir()} == before
  assert {f: f.stat().st_mtime_ns for f in out.glob('label*.png')} == ages
  monkeypatch.undo()
  (out / 'label2_seed1.png').unlink()
  (out / 'lock.json').write_text('{"token": "of a killed command", "pid": 0, "heartbeat": 0}')
  (out / '.tmp-0123456789abcdef').write_bytes(b'half a picture')
  assert sample.main(argv) == 0
  assert {f.name: f.read_bytes() for f in out.iterdir()} == before


def test_another_request_for_the_same_folder_is_refused_and_changes_nothing(
  workdir, tmp_path, capsys
):
  argv, out = given(workdir, tmp_path / 'out'), tmp_path / 'out'
  assert sample.main(argv) == 0
  before = {f: f.stat().st_mtime_ns for f in out.iterdir()}
  capsys.readouterr()
  for more, words in (
    (['--w=2'], 'w: None -> 2.0'),
    (['--seeds=0'], "seeds: '0,1' -> '0'"),
    ([f'--folder={workdir}/03_progressive_1'], 'parameters: '),
  ):
    assert sample.main([*argv, *more]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f'gdistill: --out={out} holds results of another request (')
    assert words in said and said.count('\n') == 1
  assert {f: f.stat().st_mtime_ns for f in out.iterdir()} == before
  (tmp_path / 'mine').mkdir()
  (tmp_path / 'mine' / 'lock.json').write_text('{}')  # of another program
  assert sample.main([*argv[:-1], f'--out={tmp_path}/mine']) == 2
  assert 'is not empty; name a new or an empty folder' in capsys.readouterr().err
  assert (tmp_path / 'mine' / 'lock.json').read_text() == '{}'


def test_a_folder_that_another_command_fills_is_refused(workdir, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(sampling, 'Sampler', refuse)
  out = tmp_path / 'out'
  with ledger.Lock(out):  # another command that has drawn nothing yet
    assert sample.main(given(workdir, out)) == 2
    said = capsys.readouterr().err
    assert said.startswith(f'gdistill: --out={out} is in use by host ') and said.count('\n') == 1
    assert [f.name for f in out.iterdir()] == ['lock.json']


@pytest.mark.parametrize('more', [['--w=1'], ['--w=0', '--labels=3']])
def test_pictures_that_are_not_finite_are_never_written(overflowing, tmp_path, capsys, more):
  out = tmp_path / 'out'
  assert sample.main([f'--folder={overflowing}', '--seeds=4', *more, f'--out={out}']) == 5
  said = capsys.readouterr().err.splitlines()[-1]
  assert f'pictures drawn from {overflowing} are not finite (NaN or infinity)' in said
  assert 'the first with seed 4, w = ' in said and not out.exists()


def test_a_notebook_shows_no_picture_that_is_not_finite(overflowing, workdir):
  gallery = notebook.Gallery(overflowing, labels=[1, 2], seeds=[3])
  with pytest.raises(errors.NumericsError, match=r'2 of 2 pictures .* are not finite'):
    gallery.pixels(1.0)
  with pytest.raises(errors.ConfigError, match=r'w=1e\+39 must be a number of at least 0 and at'):
    gallery.pixels(1e39)


def test_the_request_names_what_was_asked_for(workdir, tmp_path):
  assert sample.main([*given(workdir, tmp_path / 'out'), '--w=2']) == 0
  request = json.loads((tmp_path / 'out' / 'request.json').read_text())
  assert (request['w'], request['labels'], request['drawn_by']) == (2.0, ['1,2'], 'sampling')
  assert 'out' not in request and 'scale' not in request
  assert Image.open(tmp_path / 'out' / 'label1_seed0.png').size == (8, 8)
