"""two_processes.sh starts, stops and restarts both processes; one test runs the real program."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import disturbed
import micro
import pytest
import waits

from gdistill.devices import processes

pytestmark = pytest.mark.full

ROOT = pathlib.Path(__file__).parent.parent.parent
RUN = ['--run_id=a', '--config=configs/digits.py:tiny']


def ends(machine, *codes, **environment):
  """Runs the launcher with a list of exit codes for each process."""
  machine.scenario(**{f'program-{i}': list(c) for i, c in enumerate(codes)})
  return machine.run('two_processes.sh', *RUN, **environment)


def test_both_processes_get_one_coordinator_on_this_machine_only(machine):
  assert machine.run('two_processes.sh', *RUN, '--config.seed=2').returncode == 0
  calls = machine.programs()
  assert [[a for a in c if 'process' in a] for c in sorted(calls)] == [
    ['--num_processes=2', '--process_id=0'], ['--num_processes=2', '--process_id=1'],
  ]  # fmt: skip
  [coordinator] = {a for c in calls for a in c if 'coordinator' in a}
  assert coordinator.startswith('--coordinator=127.0.0.1:')
  assert all('--workdir=runs/a' in c and '--config.seed=2' in c for c in calls)
  dry = machine.run('two_processes.sh', *RUN, '--dry-run')
  assert dry.stdout.count('JAX_COORDINATOR_BIND_ADDRESS=127.0.0.1:PORT') == 2
  assert len(machine.programs()) == 2


@pytest.mark.parametrize('code', [42, 134, -signal.SIGKILL])
def test_one_that_leaves_takes_the_other_along_and_both_restart(machine, code):
  machine.scenario(program=[{'seconds': 3600, 'code': 9}, code, 0, 0])
  done = machine.run('two_processes.sh', *RUN)
  assert done.returncode == 0 and len(machine.programs()) == 4


def first(machine, code, other, **environment):
  """Lets a process leave with `code`, and one with `other` once the launcher has seen that."""
  machine.scenario(program=[code, {'once': 'seen', 'code': other}])
  child = machine.start('two_processes.sh', *RUN, PEER_SECONDS='300', **environment)
  child.says(f'left with exit code {code}')
  (machine.folder / 'seen').touch()
  _, err = child.communicate()
  return child.returncode, err


def test_the_first_to_leave_decides(machine):
  # Process 0 has bad data; process 1 is then aborted with 134, which alone would restart both.
  code, err = first(machine, 3, 134)
  assert code == 3 and len(machine.programs()) == 2
  assert 'exit code 3' in err


def test_what_needs_a_person_decides_where_the_abort_was_seen_first(machine):
  code, _ = first(machine, 134, 3)
  assert code == 3 and len(machine.programs()) == 2  # neither was started again


def test_the_traceback_of_a_survivor_does_not_hide_a_kill(machine):
  code, err = first(machine, 1, -9, MAX_RESTARTS='1', MAX_CRASHES='0')
  assert code == 137 and 'restart 1 of 1' in err


def test_sigterm_reaches_both_and_both_are_waited_for(machine):
  machine.scenario(program=['until asked'])
  child = machine.start('two_processes.sh', *RUN, PEER_SECONDS='300')
  waits.until(lambda: machine.waiting() == 2, child)
  child.send_signal(signal.SIGTERM)
  _, err = child.communicate()
  assert child.returncode == 42 and err.count('left with exit code 42') == 2
  logs = (machine.root / 'runs' / '.logs' / 'a').glob('process*.log')
  assert sum('saved' in log.read_text() for log in logs) == 2
  assert len(machine.programs()) == 2


@pytest.mark.parametrize(
  ('words', 'line'),
  [
    (['--run_id=a b'], "--run_id='a b' must be"),
    (['--processes=0'], "--processes='0' must be a whole number"),
    (['--workdir_root=gs://b'], 'must be a local folder'),
    (['--config='], '--config is missing'),
  ],
)
def test_wrong_inputs_start_nothing(machine, words, line):
  done = machine.run('two_processes.sh', *RUN, *words)
  assert done.returncode == 2 and line in done.stderr and not machine.programs()


# ---- the real program


# Seconds without progress after which a process ends; six times as many while it compiles, which
# takes long on a busy machine.
STALL = 30.0


def launch(folder, root, **environment):
  file = folder / 'config.json'
  # 12 saved steps of the teacher: enough for every kill below to fall between two of them.
  config = micro.config(
    teacher=dict(steps=120), evaluation=dict(ws=(0.0,), num_steps=(1,)),
    train=dict(stall_seconds=STALL, checkpoint_every=10),
  )  # fmt: skip
  file.write_text(json.dumps(config))
  words = ['--run_id=run', f'--config={file}', f'--workdir_root={root}']
  own = {'GDISTILL_PYTHON': sys.executable, 'RESTART_SECONDS': '1', 'PEER_SECONDS': '20'}
  return subprocess.Popen(
    ['bash', 'launch/two_processes.sh', *words], cwd=ROOT, env={**os.environ, **own, **environment},
    stderr=subprocess.PIPE, text=True, start_new_session=True,
  )  # fmt: skip


def children(pid):
  done = subprocess.run(['pgrep', '-P', str(pid), '-f', 'gdistill.main'], capture_output=True,
                        text=True)  # fmt: skip
  return sorted(int(p) for p in done.stdout.split())


def training(child, steps, seen):
  """Waits until a new step is saved; returns the two processes, or None if the launcher ended."""
  while child.poll() is None:
    pair, found = children(child.pid), {str(f) for f in steps.glob('*/steps/*/manifest.json')}
    if len(pair) == 2 and found - seen:
      seen |= found
      return pair
    time.sleep(0.05)
  return None


def ended(child, pids):
  began = time.monotonic()
  while set(children(child.pid)) & set(pids):
    time.sleep(0.05)
  return time.monotonic() - began


def test_a_real_run_whose_processes_are_killed_and_stopped_ends_with_the_same_bits(
  tmp_path, record_property
):
  undisturbed = launch(tmp_path, tmp_path / 'one')
  lines = undisturbed.communicate(timeout=600)[1]
  assert undisturbed.returncode == 0, lines
  expected = disturbed.digests(tmp_path / 'one' / 'run')
  assert len(expected) == 4

  killed, workdir, seen = launch(tmp_path, tmp_path / 'two'), tmp_path / 'two' / 'run', set()
  for victim, number in ((1, signal.SIGKILL), (1, signal.SIGSTOP), (0, signal.SIGKILL)):
    pair = training(killed, workdir, seen)
    assert pair, killed.communicate()[1]
    other = pair[1 - victim]
    os.kill(pair[victim], number)
    seconds = ended(killed, [other])
    record_property(f'{number.name}: the other one left after', f'{seconds:.1f} s')
    assert seconds < 5 * processes.HEARTBEAT  # otherwise the other one would wait for ever
    # A stopped process still lives: without the watchdog its peer would wait for ever.
    if number == signal.SIGSTOP:
      stacks = (workdir / f'stacks-{1 - victim}.txt').read_text()
      assert 'no progress for' in stacks and 'Thread' in stacks
    ended(killed, pair)
  lines = killed.communicate(timeout=600)[1]
  assert killed.returncode == 0, lines
  assert 'restart 1 of 10' in lines and 'exit code 137' in lines and 'exit code 134' in lines
  assert disturbed.digests(workdir) == expected
