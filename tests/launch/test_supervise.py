"""The restart policy: what each exit code causes, how often, and what counts as progress."""

import json
import pathlib
import signal
import subprocess
import sys
import time

import pytest
import waits

pytestmark = pytest.mark.full

ROOT = pathlib.Path(__file__).parent.parent.parent


def supervise(machine, *more, workdir='runs/a', **environment):
  return machine.run('supervise.sh', *arguments(machine, workdir), *more, **environment)


def arguments(machine, workdir='runs/a'):
  program = [str(machine.bin / 'python'), '-m', 'gdistill.main', f'--workdir={workdir}']
  return [f'--workdir={workdir}', f'--state={machine.folder}/state', '--', *program]


def test_a_run_that_is_done_is_done(machine):
  assert supervise(machine).returncode == 0
  assert len(machine.programs()) == 1
  assert (machine.folder / 'state').read_text().startswith('exited 0 done')


@pytest.mark.parametrize('code', [2, 3, 4, 5])
def test_codes_that_need_a_person_stop_and_are_reported(machine, code):
  machine.scenario(program=[code])
  done = supervise(machine)
  assert done.returncode == code and len(machine.programs()) == 1
  assert f'exit code {code}' in done.stderr and 'not restarted' in done.stderr


@pytest.mark.parametrize('code', [42, 134, 143, -signal.SIGKILL])
def test_interruptions_the_watchdog_and_kills_restart(machine, code):
  machine.scenario(program=[code, code, 0])
  assert supervise(machine, MAX_CRASHES='0').returncode == 0
  assert len(machine.programs()) == 3


def test_restarts_are_bounded(machine):
  machine.scenario(program=[134])
  done = supervise(machine, MAX_RESTARTS='4')
  assert done.returncode == 134 and len(machine.programs()) == 5
  assert 'no progress' in done.stderr
  assert 'exited 134 used-up' in (machine.folder / 'state').read_text()


def test_a_traceback_is_tried_less_often_than_a_preemption(machine):
  machine.scenario(program=[1])
  done = supervise(machine, MAX_RESTARTS='9', MAX_CRASHES='2')
  assert done.returncode == 1 and len(machine.programs()) == 3


def test_a_new_checkpoint_counts_restarts_anew(machine):
  steps = [{'code': 42, 'step': n // 2 * 5} for n in range(8)]
  machine.scenario(program=[*steps, 0])
  assert supervise(machine, MAX_RESTARTS='2').returncode == 0
  assert len(machine.programs()) == 9


def test_the_entries_of_a_run_that_dies_as_it_starts_are_no_progress(machine):
  machine.scenario(program=[{'code': 134, 'entry': n} for n in range(20)])
  assert supervise(machine, MAX_RESTARTS='3').returncode == 134
  assert len(machine.programs()) == 4


def test_a_workdir_that_cannot_be_listed_makes_progress_by_staying_up(machine):
  machine.scenario(program=[*[{'code': 42, 'seconds': 1.1}] * 2, 0])
  done = supervise(machine, workdir='gs://b/a', MAX_RESTARTS='1', PROGRESS_SECONDS='1')
  assert done.returncode == 0 and len(machine.programs()) == 3
  machine.scenario(program=[42])
  assert supervise(machine, workdir='gs://b/a', MAX_RESTARTS='1').returncode == 42


def test_a_bucket_that_can_be_listed_is_asked_for_progress(machine):
  machine.scenario(program=[42], progress=[0, 1, 2, 3, 3, 3])
  assert supervise(machine, workdir='gs://b/a', MAX_RESTARTS='1').returncode == 42
  assert len(machine.programs()) == 4  # without progress it would be 2


def test_a_signal_is_passed_on_waited_for_and_ends_it(machine):
  machine.scenario(program=['until asked'])
  child = machine.start('supervise.sh', *arguments(machine))
  waits.until(machine.waiting, child)
  child.send_signal(signal.SIGTERM)
  out, err = child.communicate()
  assert child.returncode == 42 and 'saved' in out and 'stopped by SIGTERM' in err
  assert len(machine.programs()) == 1
  assert (machine.folder / 'state').read_text().startswith('exited 42 signalled')


def test_a_signal_between_two_attempts_ends_it_too(machine):
  machine.scenario(program=[42])
  child = machine.start('supervise.sh', *arguments(machine), RESTART_SECONDS='3600')
  child.says('restart 1 of')
  child.send_signal(signal.SIGTERM)
  child.communicate()
  assert child.returncode == 42 and len(machine.programs()) == 1


def test_another_code_can_tell_kubernetes_that_restarts_are_used_up(machine):
  machine.scenario(program=[42])
  assert supervise(machine, MAX_RESTARTS='1', EXHAUSTED_CODE='75').returncode == 75


def test_the_lock_of_a_killed_machine_is_waited_for(machine):
  (machine.root / 'runs' / 'a').mkdir(parents=True)
  (machine.root / 'runs' / 'a' / 'lock.json').touch()
  began = time.monotonic()
  done = supervise(machine, RESTART_COUNT='1', LEASE_SECONDS='1.5')
  assert done.returncode == 0 and time.monotonic() - began > 1.5 and 'lock' in done.stderr


@pytest.mark.parametrize(
  ('words', 'line'),
  [
    (['--workdir=a'], 'the command is missing'),
    (['--', 'true'], '--workdir is missing'),
    (['--workdir=a', '--colour=red', '--', 'true'], '--colour=red is not an argument'),
  ],
)
def test_supervise_says_what_is_wrong(machine, words, line):
  done = machine.run('supervise.sh', *words)
  assert done.returncode == 2 and line in done.stderr


def progress(folder):
  done = subprocess.run(
    [sys.executable, 'launch/progress.py', str(folder)], cwd=ROOT, capture_output=True, text=True,
    check=True,
  )  # fmt: skip
  return int(done.stdout)


def test_progress_only_grows_as_a_run_goes_on(tmp_path):
  def touch(name):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(json.dumps({}))

  seen = [progress(tmp_path / 'absent')]
  touch('00_teacher/steps/5/manifest.json')
  seen.append(progress(tmp_path))
  touch('00_teacher/steps/9/arrays/x')  # an unfinished save: no manifest
  touch('00_teacher/steps/7.corrupt-digest/manifest.json')
  touch('ledger/00000001-round-entered.json')
  assert progress(tmp_path) == seen[-1]
  touch('00_teacher/card.json')
  seen.append(progress(tmp_path))
  touch('01_guidance/steps/5/manifest.json')
  seen.append(progress(tmp_path))
  touch('01_guidance/card.json')
  seen.append(progress(tmp_path))
  touch('evaluation/cells/a.npz')
  seen.append(progress(tmp_path))
  assert seen == sorted(set(seen)) and seen[0] == 0
