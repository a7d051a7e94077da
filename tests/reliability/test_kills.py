"""Tests that a run that is killed or stopped at any point resumes and ends with the same bits."""

import importlib
import pathlib
import random
import signal
import subprocess
import sys
import time

import disturbed
import pytest
import waits

from gdistill.workdir import checkpoints
from gdistill.workdir import ledger
from gdistill.workdir import step_checkpoints

SAVING = 'arrays written, no manifest'


def ends_as(workdir, undisturbed):
  """Checks that the run ends with the same parameters and figures, each round recorded once."""
  done = disturbed.run(workdir)
  assert done.returncode == 0, done.stderr
  assert disturbed.digests(workdir) == disturbed.digests(undisturbed)
  assert disturbed.figures(workdir) == disturbed.figures(undisturbed)
  assert '<html' in (workdir / 'report' / 'index.html').read_text()
  told = [e['round'] for e in ledger.ledger(workdir) if e['event'] == 'round-finished']
  assert told == sorted(set(told)) and len(told) == len(disturbed.digests(workdir))


def never_less(before, after, finished):
  """Checks that each round's newest restorable step did not go back, or the round is finished."""
  for name, steps in before.items():
    newest = max(steps, default=0)
    assert name in finished or max(after.get(name, []), default=0) >= newest, (name, before, after)


def test_every_point_is_a_function_of_the_program():
  for module, name, *_ in disturbed.POINTS.values():
    found = importlib.import_module(f'gdistill.{module}')
    assert pathlib.Path(found.__file__).is_relative_to(disturbed.ROOT)
    assert callable(getattr(found, name))


def test_undisturbed_it_ends_with_its_report_and_then_has_nothing_to_do(undisturbed):
  rows = disturbed.figures(undisturbed)
  keys = {
    'model', 'stage', 'sampler', 'num_steps', 'w', 'network_calls', 'fd', 'fd_teacher',
    'rms_teacher', 'inception_score', 'accuracy', 'precision', 'recall', 'images',
  }  # fmt: skip
  assert all(keys <= set(row) for row in rows)
  found = {(r['model'], r['sampler'], r['num_steps'], r['w']) for r in rows}
  for n in (1, 2):
    for w in (0.0, 2.0):
      assert ('student', 'ddim', n, w) in found
      assert {('teacher', 'ddim', n, w), ('teacher', 'dpm_solver', n, w)} <= found
  assert '<html' in (undisturbed / 'report' / 'index.html').read_text()
  again = disturbed.run(undisturbed)
  assert again.returncode == 0 and 'nothing to do' in again.stderr


# Points of a run, or seconds from the start, in the order in which a run reaches them.
SIX = ('first compile', SAVING, 1.0, 'a step complete, none pruned', 'hand-over',
       'between two cells')  # fmt: skip


def fifty():
  draw = random.Random(1)
  return (*disturbed.POINTS, *(draw.uniform(0.0, 12.0) for _ in range(40)))


@pytest.mark.parametrize(
  'plan',
  [
    pytest.param((SAVING,), id='1'),
    pytest.param(SIX, id='6', marks=pytest.mark.full),
    pytest.param(disturbed.seeded(1, fifty()), id='50', marks=pytest.mark.soak),
  ],
)
def test_killed_anywhere_it_ends_with_the_same_bits(undisturbed, tmp_path, record_property, plan):
  workdir, survived, before, todo = tmp_path / 'run', 0, {}, list(plan)
  disturbed.config(workdir, train=dict(max_to_keep=1, checkpoint_every=3))
  while todo:
    disturb = disturbed.at if isinstance(todo[0], str) else disturbed.after
    left = disturb(todo[0], workdir)
    if left.code == 0:  # the run had passed this point before, and finished: use a new workdir
      ends_as(workdir, undisturbed)
      workdir, before = workdir.with_name(workdir.name + '+'), {}
      disturbed.config(workdir, train=dict(max_to_keep=1, checkpoint_every=3))
      continue
    assert left.code == -signal.SIGKILL, left.lines
    todo.pop(0)
    survived += 1
    if workdir.exists():
      found = disturbed.restorable(workdir)
      never_less(before, found, disturbed.digests(workdir))
      before = found
  ends_as(workdir, undisturbed)
  record_property('kills survived', f'{survived} of {survived}')


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_fifty_kills_of_the_digits_cost_time_and_nothing_else(tmp_path, record_property):
  whole, workdir, draw = tmp_path / 'whole', tmp_path / 'run', random.Random(7)
  took = {}
  for one in (whole, workdir):
    disturbed.config_of(one, 'configs/digits.py')
  began = time.monotonic()
  done = disturbed.run(whole)
  assert done.returncode == 0, done.stderr
  took['undisturbed'] = time.monotonic() - began
  began, killed = time.monotonic(), 0
  # Frequent checkpoints, because otherwise each kill could come before the next checkpoint.
  often = ['--config.train.checkpoint_every=20']
  while killed < 50:
    left = disturbed.after(draw.uniform(0.0, 15.0), workdir, more=often)
    if left.code == 0:
      break
    assert left.code == -signal.SIGKILL, left.lines
    killed += 1
  ends_as(workdir, whole)
  took['killed'] = time.monotonic() - began
  lost = (took['killed'] - took['undisturbed']) / killed
  record_property('kills survived', f'{killed} of {killed}, {lost:.1f} s lost a kill')


@pytest.mark.parametrize(
  'points',
  [
    pytest.param(
      ['first compile', SAVING, 'a cell drawn, not measured'], id='3', marks=pytest.mark.full
    ),
    pytest.param([*disturbed.POINTS] * 2, id='20', marks=pytest.mark.soak),
  ],
)
def test_told_to_stop_it_saves_and_leaves_with_42(undisturbed, tmp_path, record_property, points):
  workdir, spent, todo = tmp_path / 'run', [], list(points)
  signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
  while todo:
    left = disturbed.at(todo[0], workdir, signals[len(spent) % 3])
    # The run finished: the signal came during the report, or the run had passed this point before.
    if left.code == 0:
      ends_as(workdir, undisturbed)
      workdir = workdir.with_name(workdir.name + '+')
      if left.seconds is not None:
        todo.pop(0)
      continue
    assert left.code == 42, (todo[0], left.lines)
    assert 'repeat the command' in left.lines.splitlines()[-1]
    assert left.busy < 20 and left.seconds < 120, (todo[0], left)
    todo.pop(0)
    spent.append(left.seconds)
    for steps in workdir.glob('*/steps'):  # no incomplete step is visible
      assert all(checkpoints.is_complete(p) for p in steps.iterdir() if p.name.isdigit())
  ends_as(workdir, undisturbed)
  record_property('left with 42', f'{len(spent)}, {max(spent):.1f} s at most')


# The second save hangs between its arrays and its manifest. Signals that are heard are printed.
HANGS = """
import os, sys, time
from gdistill.cli import exit_codes, train
from gdistill.process import interrupt
from gdistill.workdir import checkpoints
write, arrived, left = checkpoints._write_arrays, interrupt.Interrupt._arrived, [2]
def hang(*given):
  write(*given)
  left[0] -= 1
  if not left[0]:
    os.write(1, b'half a step\\n')
    time.sleep(3600)
def told(*given):
  arrived(*given)
  os.write(1, b'heard\\n')
checkpoints._write_arrays, interrupt.Interrupt._arrived = hang, told
exit_codes.exit_process(exit_codes.call(lambda: train.main(sys.argv[1:]), False))
"""


@pytest.mark.full
@pytest.mark.parametrize('pair', [(signal.SIGTERM, signal.SIGTERM), (signal.SIGHUP, signal.SIGINT)])
def test_a_second_signal_leaves_at_once_and_no_half_step_is_seen(tmp_path, pair):
  workdir = tmp_path / 'run'
  disturbed.config(workdir, train=dict(checkpoint_every=1, max_to_keep=1))
  child = subprocess.Popen(
    [sys.executable, '-c', HANGS, *disturbed.command(workdir)[3:]], cwd=disturbed.ROOT,
    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=disturbed.environment({}),
    preexec_fn=disturbed.hears,
  )  # fmt: skip
  try:
    assert child.stdout.readline() == 'half a step\n'
    child.send_signal(pair[0])
    assert child.stdout.readline() == 'heard\n'
    time.sleep(1.0)
    assert child.poll() is None  # it waits for the save
    waits.signalled(child, pair[1])
  finally:
    child.kill()
  lines = child.communicate()[1]
  assert child.returncode == 128 + pair[1] and 'a second signal' in lines
  steps = workdir / '00_teacher' / 'steps'
  assert len(list(steps.glob('*/arrays'))) == 2
  [whole] = disturbed.restorable(workdir)['00_teacher']
  assert step_checkpoints.restore_latest(steps)[0] == whole


@pytest.mark.full
def test_when_every_step_is_damaged_it_ends_with_4_lists_them_and_starts_nothing_afresh(tmp_path):
  workdir = tmp_path / 'run'
  disturbed.config(workdir, train=dict(max_to_keep=3, checkpoint_every=3))
  left = disturbed.at('a step complete, none pruned', workdir, count=2)
  steps = sorted((workdir / '00_teacher' / 'steps').iterdir())
  assert left.code == -signal.SIGKILL and [p.name for p in steps] == ['3', '6']
  for step in steps:
    largest = max((step / 'arrays').rglob('*'), key=lambda p: p.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[-1] ^= 1
    largest.write_bytes(bytes(data))
  for _ in range(2):  # a second start gives the same error
    done = disturbed.run(workdir)
    assert done.returncode == 4
    last = done.stderr.splitlines()[-1]
    assert 'every step is damaged: ' in last and '3' in last and '6' in last and '(digest)' in last
    assert 'Traceback' not in done.stderr and not (workdir / '00_teacher' / 'card.json').exists()
    names = {p.name for p in (workdir / '00_teacher' / 'steps').iterdir()}
    assert names == {'3.corrupt-digest', '6.corrupt-digest'}
