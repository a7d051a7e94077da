"""A grid is the same however it is shared out, and goes on where a kill left it."""

import json
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import micro
import numpy as np
import pytest

from gdistill.workdir import storage

ROOT = pathlib.Path(__file__).parents[3]
# What depends on the machine.
TIMES = ('seconds_per_image',)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  folder = tmp_path_factory.mktemp('grids') / 'run'
  micro.train(micro.recipe(evaluation={'batch_size': 8}), folder)
  return folder


@pytest.fixture
def workdir(trained, tmp_path):
  return pathlib.Path(shutil.copytree(trained, tmp_path / 'run'))


def rows_of(workdir):
  return json.loads((workdir / 'report' / 'metrics.json').read_text())


def compare(found, expected):
  """Row by row: the same protocol to the letter, the same figures up to float32's rounding."""
  assert len(found) == len(expected)
  for a, b in zip(found, expected, strict=True):
    assert a.keys() == b.keys()
    for key in a.keys() - set(TIMES):
      if isinstance(a[key], float):
        np.testing.assert_allclose(a[key], b[key], rtol=1e-5, atol=1e-5, err_msg=key)
      else:
        assert a[key] == b[key], key


def test_pictures_may_leave_the_devices_or_stay_there(workdir, capsys):
  """What is kept changes no figure; a cell that keeps few is drawn anew to be measured again."""
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
  compare([{**r, **unlike} for r in few], [{**r, **unlike} for r in whole])
  capsys.readouterr()
  # The measures that are kept have another bank.
  again = micro.evaluate(workdir, change=lambda c: c['evaluation'].update(keep_images=3, bank=7))
  assert f'{len(again)} cells keep fewer than their 20 pictures' in capsys.readouterr().err
  assert [r['fd'] for r in again] == pytest.approx([r['fd'] for r in few], rel=1e-5, abs=1e-5)
  assert {r['bank'] for r in again} == {7}


def command(workdir, *more):
  program = [
    sys.executable,
    '-c',
    'from gdistill.cli import command; command.program()',
  ]
  return subprocess.Popen(
    [*program, 'evaluate', f'--workdir={workdir}', *more],
    cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
  )  # fmt: skip


def cells_of(workdir):
  folder = workdir / 'evaluation' / 'cells'
  return {p.name: p.stat().st_mtime_ns for p in folder.glob('*.npz')} if folder.exists() else {}


@pytest.mark.heavy
def test_one_two_and_eight_devices_give_the_same_figures(workdir):
  found = []
  for count in (1, 2, 8):
    config = json.loads((workdir / 'config.json').read_text())
    config['mesh']['cpu_devices'] = count
    (workdir / 'config.json').write_text(json.dumps(config))
    # The classifier stays: trained again beside other devices, its last bits may be others.
    for made in ('cells', 'measured', 'figures'):
      shutil.rmtree(workdir / 'evaluation' / made, ignore_errors=True)
    child = command(workdir)
    lines, _ = child.communicate(timeout=600)
    assert child.returncode == 0, lines
    found.append(rows_of(workdir))
  compare(found[1], found[0])
  compare(found[2], found[0])


@pytest.mark.heavy
def test_a_process_may_have_nothing_to_draw(workdir):
  """20 pictures in batches of 32: they all fall to the first of two processes."""
  expected = micro.evaluate(workdir)
  shutil.rmtree(workdir / 'evaluation')  # the classifier too, which one of them trains
  for child in start(workdir, 2, '--config.evaluation.batch_size=32'):
    lines, _ = child.communicate(timeout=600)
    assert child.returncode == 0, lines
  compare(rows_of(workdir), json.loads(json.dumps(storage.jsonable(expected))))


def start(workdir, processes, *more):
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    port = s.getsockname()[1]
  flags = lambda i: [f'--coordinator=127.0.0.1:{port}', f'--num_processes={processes}',
                     f'--process_id={i}'] if processes > 1 else []  # fmt: skip
  return [command(workdir, *more, *flags(i)) for i in range(processes)]


@pytest.mark.heavy
@pytest.mark.parametrize('processes', [1, 2])
def test_killed_in_the_middle_it_goes_on_and_ends_with_the_same_figures(
  workdir, tmp_path, processes
):
  expected = micro.evaluate(workdir, 'full')
  for made in ('cells', 'measured', 'figures'):
    shutil.rmtree(workdir / 'evaluation' / made)
  children, deadline = start(workdir, processes, '--grid=full'), time.monotonic() + 300
  while len(cells_of(workdir)) < 5 and time.monotonic() < deadline:
    time.sleep(0.01)
    assert all(c.poll() is None for c in children), children[0].communicate()[0]
  for child in children:
    child.send_signal(signal.SIGKILL)
  for child in children:
    child.communicate()
  before = cells_of(workdir)
  assert 5 <= len(before) < len(expected)
  for lock in workdir.glob('lock.json'):
    lock.unlink()  # its lease is a minute
  again = start(workdir, processes, '--grid=full')
  for child in again:
    lines, _ = child.communicate(timeout=600)
    assert child.returncode == 0, lines
  after = cells_of(workdir)
  assert all(after[name] == at for name, at in before.items())  # not drawn anew
  assert len(after) == len(expected)
  assert not list((workdir / 'evaluation').glob('parts/*'))
  compare(rows_of(workdir), json.loads(json.dumps(storage.jsonable(expected))))
