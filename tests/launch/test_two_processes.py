"""two_processes.sh: both start, both stop, both start again; and once with the real program."""

import json
import os
import pathlib
import random
import signal
import subprocess
import time

import disturbed
import micro
import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent
RUN = ['--run_id=a', '--config=configs/digits.py:tiny']


def ends(machine, *codes, **environment):
  """The launcher, with a list of codes for process 0 and one for process 1."""
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
  machine.scenario(program=[{'seconds': 30, 'code': 9}, code, 0, 0])
  done = machine.run('two_processes.sh', *RUN)
  assert done.returncode == 0 and len(machine.programs()) == 4


def test_the_first_to_leave_decides(machine):
  # Process 0 has bad data; process 1 is then aborted, which alone would restart both.
  machine.scenario(program=[3, {'seconds': 0.6, 'code': 134}])
  done = machine.run('two_processes.sh', *RUN, PEER_SECONDS='5')
  assert done.returncode == 3 and len(machine.programs()) == 2
  assert 'exit code 3' in done.stderr


def test_what_needs_a_person_decides_where_the_abort_was_seen_first(machine):
  machine.scenario(program=[134, {'seconds': 0.6, 'code': 3}])
  done = machine.run('two_processes.sh', *RUN, PEER_SECONDS='5')
  assert done.returncode == 3 and len(machine.programs()) == 2  # neither was started again


def test_the_traceback_of_a_survivor_does_not_hide_a_kill(machine):
  machine.scenario(program=[1, {'seconds': 0.6, 'code': -9}])
  done = machine.run(
    'two_processes.sh', *RUN, PEER_SECONDS='5', MAX_RESTARTS='1', MAX_CRASHES='0'
  )  # fmt: skip
  assert done.returncode == 137 and 'restart 1 of 1' in done.stderr


def test_sigterm_reaches_both_and_both_are_waited_for(machine):
  machine.scenario(program=['until asked'])
  child = machine.start('two_processes.sh', *RUN, PEER_SECONDS='5')
  while not (machine.folder / 'waiting').exists() or len(machine.programs()) < 2:
    time.sleep(0.02)
  time.sleep(0.5)
  child.send_signal(signal.SIGTERM)
  _, err = child.communicate(timeout=20)
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


def launch(folder, root, **environment):
  file = folder / 'config.json'
  file.write_text(json.dumps(micro.config()))
  words = ['--run_id=run', f'--config={file}', f'--workdir_root={root}']
  return subprocess.Popen(
    ['bash', 'launch/two_processes.sh', *words],
    cwd=ROOT, env={**os.environ, 'RESTART_SECONDS': '1', 'PEER_SECONDS': '20', **environment},
    stderr=subprocess.PIPE, text=True, start_new_session=True,
  )  # fmt: skip


def children(pid):
  done = subprocess.run(['pgrep', '-P', str(pid), '-f', 'gdistill.main'], capture_output=True,
                        text=True)  # fmt: skip
  return [int(p) for p in done.stdout.split()]


@pytest.mark.heavy
def test_a_real_run_whose_processes_are_killed_ends_with_the_same_bits(tmp_path):
  undisturbed = launch(tmp_path, tmp_path / 'one')
  lines = undisturbed.communicate(timeout=600)[1]
  assert undisturbed.returncode == 0, lines
  expected = disturbed.digests(tmp_path / 'one' / 'run')
  assert len(expected) == 4

  draw = random.Random(5)
  killed = launch(tmp_path, tmp_path / 'two')
  steps = tmp_path / 'two' / 'run'
  for victim in (1, 0):
    # Past the first checkpoint of some round: there is something to go on from.
    seen = len(list(steps.glob('*/card.json')))
    while killed.poll() is None and (
      len(children(killed.pid)) < 2 or not list(steps.glob('*/steps/*/manifest.json'))
      or len(list(steps.glob('*/card.json'))) < seen
    ):  # fmt: skip
      time.sleep(0.1)
    time.sleep(draw.uniform(0, 2))
    pair = sorted(children(killed.pid))
    if len(pair) == 2:
      os.kill(pair[victim], signal.SIGKILL)
      while len(children(killed.pid)) and set(children(killed.pid)) & set(pair):
        time.sleep(0.1)
  lines = killed.communicate(timeout=600)[1]
  assert killed.returncode == 0, lines
  assert 'restart 1 of 10' in lines and 'exit code 137' in lines
  assert disturbed.digests(tmp_path / 'two' / 'run') == expected
