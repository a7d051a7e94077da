"""tpu.sh against a cloud that refuses, has no capacity, hangs, loses a host or preempts slices."""

import os
import re
import signal
import subprocess

import pytest
import waits

pytestmark = pytest.mark.full

HERE = ['--run_id=Run_1', '--zone=us-west4-a', '--project=my-project']
CONFIG = '--config=configs/digits.py:tiny'
RUN = [*HERE, '--tpu_type=v5litepod-8', '--bucket=gs://bucket/runs', CONFIG]
NAME = 'gdistill-run-1-d7513394'
STOCK_OUT = 'There is no more capacity in the zone "us-west4-a"; you can try in another zone'
QUOTA = "Quota limit 'TPUV5sLitepodPerProjectPerZoneForTPUAPI' has been exceeded. Limit: 0"


def verbs(machine):
  return [c[4] for c in machine.calls('gcloud') if c[4] != 'describe']


# ---- checks, before anything costs money


@pytest.mark.parametrize(
  ('words', 'line'),
  [
    (['--run_id=a/b'], "--run_id='a/b' must be 1 to 64 of A-Z a-z 0-9 . _ -"),
    (['--run_id=..'], "--run_id='..'"),
    (['--run_id=' + 'a' * 65], 'must be 1 to 64'),
    (['--run_id='], '--run_id is missing'),
    (['--zone=mars'], "--zone='mars' must be a zone such as"),
    (['--project=My Project'], "--project='My Project' must be a project id"),
    (['--tpu_type=v3-8'], "--tpu_type='v3-8' must be v4-N"),
    (['--tpu_type=v4-12'], 'must be a multiple of 8'),
    (['--tpu_type=v5litepod-12'], 'comes with 1, 4, 8, 16'),
    (['--bucket=runs'], "--bucket='runs' must be gs://BUCKET"),
    (['--bucket=gs://bucket/../x'], 'must be gs://BUCKET'),
    (['--slices=0'], "--slices='0' must be a whole number"),
    (['--slices=two'], "--slices='two'"),
    (['--config=/etc/x.py'], 'must be a path inside the repository'),
    (['--config=configs/new.py'], 'is not tracked by git'),
    (['--runtime_version=a b'], "--runtime_version='a b' is not a valid name"),
    (['--valid_until=6h'], 'needs --queued'),
    (['--queued', '--valid_until=soon'], 'must be a duration such as 6h'),
    (['--config.wandb.api_key=abc'], 'looks like a secret'),
    (['--colour=red'], '--colour=red is not an argument of tpu.sh'),
    (['--queued=yes'], '--queued=yes is not an argument'),
    (['more'], 'more is not an argument'),
    (['--secrets=nowhere'], "--secrets='nowhere' is not a file"),
  ],
)
def test_wrong_inputs_cost_nothing(machine, words, line):
  done = machine.run('tpu.sh', 'create', *RUN, *words)
  assert done.returncode == 2 and line in done.stderr and 'abc' not in done.stderr
  assert len([x for x in done.stderr.splitlines() if x.startswith('launch: ')]) == 1
  assert not machine.calls('gcloud')


@pytest.mark.parametrize('command', ['', 'start', 'creat'])
def test_an_unknown_command_is_answered_with_the_known_ones(machine, command):
  done = machine.run('tpu.sh', *([command] if command else []))
  assert done.returncode == 2 and 'one of create setup run status' in done.stderr


@pytest.mark.parametrize('command', ['create', 'setup', 'run', 'babysit'])
def test_the_plans_line_and_code_come_through(machine, command):
  machine.scenario(plan=[2, 'gdistill: teacher.batch_size=60 must be divisible by 8 devices\n'])
  for more in [], ['--dry-run']:
    done = machine.run('tpu.sh', command, *RUN, *more)
    assert done.returncode == 2
    assert done.stderr == 'gdistill: teacher.batch_size=60 must be divisible by 8 devices\n'
  assert not machine.calls('gcloud')


@pytest.mark.parametrize(
  ('tpu_type', 'slices', 'devices'),
  [
    ('v4-8', 1, 4), ('v4-64', 2, 64), ('v5p-16', 1, 8), ('v5litepod-1', 1, 1),
    ('v5litepod-16', 1, 16), ('v6e-8', 1, 8), ('v6e-256', 4, 1024),
  ],
)  # fmt: skip
def test_the_plan_is_made_for_the_chips_of_the_slice(machine, tpu_type, slices, devices):
  more = [f'--tpu_type={tpu_type}', f'--slices={slices}', '--config.seed=3', '--dry-run']
  assert machine.run('tpu.sh', 'create', *RUN, *more).returncode == 0
  [call] = machine.calls('python', '--plan')
  assert f'--devices={devices}' in call and '--config.seed=3' in call
  assert (f'--config.mesh.slices={slices}' in call) == (slices > 1)


def test_create_tells_what_the_last_plan_for_the_slice_found_or_how_to_make_one(machine):
  done = machine.run('tpu.sh', 'create', *RUN)
  [line] = [a for a in done.stderr.splitlines() if 'were not compiled for' in a]
  assert line.split('run: ')[1].startswith('python -m gdistill.main --plan --config=')
  machine.scenario(kept=[0, 'teacher yes 3.00 GB\n'])
  done = machine.run('tpu.sh', 'create', *RUN)
  assert 'teacher yes 3.00 GB' in done.stderr and 'were not compiled' not in done.stderr
  machine.run('tpu.sh', 'create', *RUN, '--slices=2', '--config.seed=3')
  kept = machine.calls('python', '--kept')[-1]
  assert {'--topology=2x v5litepod-8', '--config.seed=3', '--config.mesh.slices=2'} <= set(kept)


@pytest.mark.parametrize(
  ('tpu_type', 'hosts'),
  [
    ('v4-8', 1), ('v4-32', 4), ('v5p-16', 2), ('v5litepod-8', 1), ('v5litepod-16', 4),
    ('v6e-64', 16),
  ],
)  # fmt: skip
def test_hosts_of_a_slice(machine, tpu_type, hosts):
  words = f'source launch/common.sh; slice_of {tpu_type}; echo $HOSTS'
  done = subprocess.run(['bash', '-c', words], cwd=machine.root, capture_output=True, text=True)
  assert done.stdout.strip() == str(hosts)


def test_names_of_machines_are_valid_short_and_of_one_run_each(machine):
  ids = ['a', 'run-1', 'Run-1', 'run_1', 'run.1', 'x' * 64, 'x' * 63 + 'y', '9', 'a-']
  words = f'source launch/common.sh; for i in {" ".join(ids)}; do resource_name $i; done'
  done = subprocess.run(['bash', '-c', words], cwd=machine.root, capture_output=True, text=True)
  names = done.stdout.split()
  assert len(set(names)) == len(ids) and 'gdistill-run-1' in names
  for name in names:
    assert len(name) <= 40 and name[0].isalpha() and name[-1] != '-' and name == name.lower()


def test_no_interpreter_is_said_before_anything_costs_money(machine):
  done = machine.run('tpu.sh', 'create', *RUN, GDISTILL_PYTHON='/nowhere/python')
  assert done.returncode == 2 and "GDISTILL_PYTHON='/nowhere/python' is not there" in done.stderr


# ---- dry run


def test_a_dry_run_prints_what_a_run_does_and_runs_nothing(machine):
  printed = machine.run('tpu.sh', 'create', *RUN, '--spot', '--dry-run')
  assert printed.returncode == 0 and not machine.calls('gcloud')
  machine.run('tpu.sh', 'create', *RUN, '--spot')
  [call] = machine.calls('gcloud')
  assert printed.stdout.split()[3:] == call
  assert '--spot' in call and '--version=v2-alpha-tpuv5-lite' in call and NAME in call


@pytest.mark.parametrize(
  'command', ['create', 'setup', 'run', 'status', 'logs', 'stop', 'delete', 'babysit']
)
def test_every_command_has_a_dry_run(machine, command):
  done = machine.run('tpu.sh', command, *RUN, '--queued', '--slices=2', '--dry-run')
  assert done.returncode == 0 and not machine.calls('gcloud')
  lines = [x for x in done.stdout.splitlines() if ' gcloud ' in x]
  assert lines and all(x.startswith('timeout --kill-after=10 ') for x in lines)


def test_several_slices_are_one_queued_resource(machine):
  done = machine.run('tpu.sh', 'create', *RUN, '--slices=2', '--valid_until=6h', '--dry-run')
  assert f'queued-resources create {NAME}' in done.stdout
  assert f'--node-count=2 --node-prefix={NAME}' in done.stdout
  assert '--valid-until-duration=6h' in done.stdout
  done = machine.run('tpu.sh', 'run', *RUN, '--slices=2', '--dry-run')
  assert f'queued-resources ssh {NAME} --node=all --worker=all' in done.stdout
  assert '--config.mesh.slices=2' in done.stdout  # the hosts build a mesh of two slices


# ---- create


def test_create_refused_by_quota_says_so(machine):
  machine.scenario(create=[QUOTA])
  done = machine.run('tpu.sh', 'create', *RUN)
  assert done.returncode == 1 and QUOTA in done.stderr and 'would be again' in done.stderr
  assert verbs(machine) == ['create']


def test_create_without_capacity_says_what_else_there_is(machine):
  machine.scenario(create=[STOCK_OUT])
  done = machine.run('tpu.sh', 'create', *RUN)
  assert done.returncode == 1 and 'let babysit try' in done.stderr


def test_a_hanging_create_is_given_up(machine):
  machine.scenario(create=['hang'])
  done = machine.run('tpu.sh', 'create', *RUN, CREATE_SECONDS='1')
  assert done.returncode == 1 and 'no answer in 1 seconds from: gcloud' in done.stderr


def test_creating_what_exists_is_no_error(machine):
  machine.scenario(create=["ALREADY_EXISTS: Resource 'x' already exists"])
  done = machine.run('tpu.sh', 'create', *RUN)
  assert done.returncode == 0 and 'exists already' in done.stderr


# ---- setup and run


def ready(machine, **answers):
  """Creates a slice with two hosts."""
  machine.scenario(hosts=2, **answers)
  assert machine.run('tpu.sh', 'create', *RUN).returncode == 0


def test_set_up_run_status_logs_stop_delete(machine):
  ready(machine, program=['until asked'])
  status = ['tpu.sh', 'status', *HERE]
  assert machine.run(*status).stdout.count(': No such') == 0
  done = machine.run('tpu.sh', 'setup', *RUN)
  assert done.returncode == 0 and done.stdout.count('ready') == 2
  assert machine.run(*status).stdout.count(' idle') == 2
  done = machine.run('tpu.sh', 'run', *RUN, '--config.seed=1')
  assert done.returncode == 0 and done.stdout.count('started') == 2
  waits.until(lambda: machine.waiting() == 2)
  assert 'running already' in machine.run('tpu.sh', 'run', *RUN).stdout
  done = machine.run(*status)
  assert f'tpu-vm {NAME} READY' in done.stdout and done.stdout.count(' running') == 2
  assert machine.run('tpu.sh', 'logs', *HERE).stdout.count('runs, environment says') == 2
  done = machine.run('tpu.sh', 'stop', *HERE)
  assert done.stdout.count('exited 42 signalled') == 2
  assert len(machine.programs()) == 2
  [one, _] = machine.programs()
  assert '--workdir=gs://bucket/runs/Run_1' in one and '--config.seed=1' in one
  assert machine.run('tpu.sh', 'delete', *HERE).returncode == 0
  assert 'nothing to delete' in machine.run('tpu.sh', 'delete', *HERE).stderr


def test_the_sources_are_the_tracked_files_as_they_are(machine):
  (machine.root / 'configs' / 'digits.py').write_text('# changed, not committed')
  (machine.root / 'untracked').write_text('')
  head = (machine.root / '.git' / 'HEAD').read_text()
  ready(machine)
  assert machine.run('tpu.sh', 'setup', *RUN).returncode == 0
  source = machine.folder / 'slice1' / 'host1' / 'gdistill' / 'src'
  assert (source / 'configs' / 'digits.py').read_text() == '# changed, not committed'
  assert not (source / 'untracked').exists()
  assert (machine.root / '.git' / 'HEAD').read_text() == head
  assert (machine.root / 'configs' / 'digits.py').read_text() == '# changed, not committed'


def test_half_a_set_up_is_done_again_and_a_whole_one_is_not(machine):
  ready(machine, pip=[1, 0])
  done = machine.run('tpu.sh', 'setup', *RUN)
  assert done.returncode != 0
  assert 'unready' in machine.run('tpu.sh', 'status', *HERE).stdout
  done = machine.run('tpu.sh', 'run', *RUN)
  assert done.returncode == 75 and 'not set up, or only in part' in done.stderr
  assert machine.run('tpu.sh', 'setup', *RUN).returncode == 0
  assert len(machine.calls('python', 'pip')) == 3
  assert machine.run('tpu.sh', 'setup', *RUN).returncode == 0
  assert len(machine.calls('python', 'pip')) == 3


def test_ssh_255_on_one_worker_is_tried_again(machine):
  ready(machine, ssh=['255', 'ok'])
  assert machine.run('tpu.sh', 'setup', *RUN).returncode == 0
  assert len(machine.calls('gcloud', 'ssh')) == 2
  machine.scenario(hosts=2, ssh=['255'])
  assert machine.run('tpu.sh', 'setup', *RUN).returncode == 255
  assert len(machine.calls('gcloud', 'ssh')) == 2 + 3


# In place of `timeout`: ends a command as soon as it hangs, and not one that is only slow.
TIMEOUT = """#!/bin/sh
shift 2  # --kill-after=... and the seconds
"$@" &
while kill -0 $! 2>/dev/null; do
  if [ -e "$FAKES/hanging" ]; then
    rm "$FAKES/hanging"
    kill -9 $!
    exit 124
  fi
  /bin/sleep 0.05
done
wait $!
"""


def test_a_hanging_worker_is_tried_again_and_then_given_up(machine):
  ready(machine, ssh=['hang', 'ok'])
  (machine.bin / 'timeout').write_text(TIMEOUT)
  (machine.bin / 'timeout').chmod(0o700)
  assert machine.run('tpu.sh', 'logs', *HERE).returncode == 127  # no sources yet
  assert len(machine.calls('gcloud', 'ssh')) == 2
  (machine.bin / 'timeout').unlink()
  machine.scenario(hosts=2, ssh=['hang'])
  done = machine.run('tpu.sh', 'logs', *HERE, SSH_SECONDS='0.2')
  assert done.returncode == 124 and done.stderr.count('no answer') == 3


def test_sources_are_not_changed_under_a_running_program(machine):
  ready(machine, program=['until asked'])
  machine.run('tpu.sh', 'setup', *RUN)
  machine.run('tpu.sh', 'run', *RUN)
  (machine.root / 'configs' / 'digits.py').write_text('# changed')
  done = machine.run('tpu.sh', 'setup', *RUN)
  assert done.returncode == 2 and 'is running other sources' in done.stderr
  machine.run('tpu.sh', 'delete', *HERE)


def test_secrets_reach_the_program_and_no_command_line(machine):
  secrets = machine.folder / 'secrets'
  secrets.write_text('# for the hub\nHF_TOKEN=hf_$(touch pwned) "x"\n')
  secrets.chmod(0o644)
  done = machine.run('tpu.sh', 'setup', *RUN, f'--secrets={secrets}')
  assert done.returncode == 2 and 'can be read by others (mode 644); chmod 600 it' in done.stderr
  secrets.chmod(0o600)
  ready(machine)
  assert machine.run('tpu.sh', 'setup', *RUN, f'--secrets={secrets}').returncode == 0
  kept = machine.folder / 'slice1' / 'host0' / 'gdistill' / 'env'
  assert kept.stat().st_mode & 0o777 == 0o600
  machine.run('tpu.sh', 'run', *RUN)
  logs = [machine.folder / f'slice1/host{i}/gdistill/runs/Run_1/log' for i in range(2)]
  waits.until(lambda: all('environment says' in log.read_text() for log in logs))
  log = machine.run('tpu.sh', 'logs', *HERE).stdout
  assert 'environment says hf_$(touch pwned) "x"' in log
  assert not list(machine.folder.glob('**/pwned'))
  assert 'hf_' not in (machine.folder / 'calls.jsonl').read_text()


@pytest.mark.parametrize('line', ['export A=1', 'just words', '1A=b'])
def test_a_malformed_line_of_secrets_is_not_repeated(machine, line):
  secrets = machine.folder / 'secrets'
  secrets.write_text(line)
  secrets.chmod(0o600)
  done = machine.run('tpu.sh', 'create', *RUN, f'--secrets={secrets}')
  assert done.returncode == 2 and 'NAME=value' in done.stderr and line not in done.stderr


def test_a_delete_that_did_not_happen_is_told(machine):
  ready(machine)
  machine.scenario(delete=['no'])
  done = machine.run('tpu.sh', 'delete', *HERE)
  assert done.returncode == 1 and 'is still READY' in done.stderr and 'cost money' in done.stderr


def test_a_cloud_that_does_not_answer_is_not_an_absent_slice(machine):
  ready(machine)
  machine.scenario(describe=['UNAUTHENTICATED: log in'])
  done = machine.run('tpu.sh', 'delete', *HERE)
  assert done.returncode == 1 and 'UNAUTHENTICATED' in done.stderr
  assert 'gcloud did not give the state of' in done.stderr
  assert 'nothing to delete' not in done.stderr


# ---- babysit


def babysit(machine, *more, **environment):
  return machine.run('tpu.sh', 'babysit', *RUN, '--tpu_type=v5litepod-8', *more, **environment)


def test_babysit_takes_a_run_from_nothing_to_its_end_and_deletes_the_slice(machine):
  done = babysit(machine)
  assert done.returncode == 0 and 'the run is done: gs://bucket/runs/Run_1' in done.stderr
  assert verbs(machine)[0] == 'create' and verbs(machine)[-1] == 'delete'
  assert len(machine.programs()) == 1


def test_babysit_keeps_the_slice_when_asked(machine):
  done = babysit(machine, '--keep')
  assert done.returncode == 0 and 'delete' not in verbs(machine)
  assert 'stays and costs money until you run: bash launch/tpu.sh delete' in done.stderr


@pytest.mark.parametrize('mode', [[], ['--queued']])
def test_babysit_outlives_three_preemptions(machine, mode):
  # Each slice is preempted after so many describes, while the program is running.
  machine.scenario(preempted_after=[2, 3, 2], program=[*[{'seconds': 3600, 'code': 9}] * 3, 0])
  done = babysit(machine, *mode)
  assert done.returncode == 0, done.stderr
  assert verbs(machine).count('create') == 4 and verbs(machine).count('delete') == 4
  assert len({tuple(c[1:]) for c in machine.programs()}) == 1  # the same command, the same workdir
  # The first slice finds the workdir free; later slices wait for the lock of the lost slice.
  counts = [re.search(r'RESTART_COUNT=(\d)', ' '.join(c)) for c in machine.calls('gcloud', 'ssh')]
  assert [c[1] for c in counts if c] == ['0', '1', '1', '1']


def test_babysit_waits_for_capacity(machine):
  machine.scenario(create=[STOCK_OUT, STOCK_OUT, 'ok'])
  (machine.bin / 'sleep').write_text('#!/bin/sh\n')
  (machine.bin / 'sleep').chmod(0o700)
  done = babysit(machine, BACKOFF_SECONDS='60', BACKOFF_MOST='100')
  assert done.returncode == 0
  assert verbs(machine).count('create') == 3
  assert 'next try in 60 seconds' in done.stderr and 'next try in 100 seconds' in done.stderr


def test_babysit_does_not_ask_again_for_what_the_quota_refuses(machine):
  machine.scenario(create=[QUOTA])
  done = babysit(machine)
  assert done.returncode == 1 and verbs(machine) == ['create']


def test_babysit_reads_why_a_queued_resource_failed(machine):
  machine.scenario(create=['failed'], failure=QUOTA)
  done = babysit(machine, '--queued')
  assert done.returncode == 1 and QUOTA in done.stderr
  assert verbs(machine) == ['create', 'delete']


def test_babysit_asks_for_a_bounded_number_of_slices(machine):
  machine.scenario(create=[STOCK_OUT])
  done = babysit(machine, MAX_CREATES='3')
  assert done.returncode == 1 and verbs(machine).count('create') == 3


@pytest.mark.parametrize('code', [2, 5])
def test_babysit_stops_and_reports_what_needs_a_person(machine, code):
  machine.scenario(program=[code])
  done = babysit(machine)
  assert done.returncode == code and f'ended with exit code {code}' in done.stderr
  assert len(machine.programs()) == 1 and 'runs, environment says' in done.stderr
  assert verbs(machine)[-1] == 'delete'


def test_babysit_stops_the_other_hosts_when_one_ends_for_good(machine):
  third = [{'once': 'all wait', 'code': 3}]
  machine.scenario(hosts=4, program=['until asked'], **{'program-t1v-w-2': third})
  child = machine.start('tpu.sh', 'babysit', *RUN, '--tpu_type=v5litepod-16')
  waits.until(lambda: machine.waiting() == 3, child)
  (machine.folder / 'all wait').touch()
  out, err = child.communicate()
  assert child.returncode == 3 and 'ended with exit code 3' in err
  assert out.count('exited 42 signalled') == 3


def test_babysit_does_not_repeat_what_the_hosts_have_repeated_enough(machine):
  machine.scenario(program=[134])
  done = babysit(machine, MAX_RESTARTS='2')
  assert done.returncode == 134 and len(machine.programs()) == 3


def test_babysit_starts_a_run_again_that_was_lost_with_its_host_still_there(machine):
  machine.scenario(program=[{'seconds': 3600, 'code': 9}, 0])
  child = machine.start('tpu.sh', 'babysit', *RUN)
  pid = machine.folder / 'slice1/host0/gdistill/runs/Run_1/pid'
  waits.until(lambda: machine.waiting() and pid.read_text().strip(), child)
  os.killpg(int(pid.read_text()), signal.SIGKILL)  # a reboot ends the run like this
  child.communicate()
  assert child.returncode == 0 and len(machine.programs()) == 2
  assert verbs(machine).count('create') == 1


def test_babysit_redoes_half_a_set_up(machine):
  machine.scenario(pip=[1, 0])
  assert babysit(machine).returncode == 0
  assert len(machine.calls('python', 'pip')) == 2


def test_babysit_replaces_a_slice_that_says_ready_and_does_not_answer(machine):
  machine.scenario(ssh=[*['255'] * 9, 'ok'])
  assert babysit(machine).returncode == 0
  assert verbs(machine).count('create') == 2


def test_babysit_says_what_costs_money_when_it_is_interrupted(machine):
  machine.scenario(program=['until asked'])
  child = machine.start('tpu.sh', 'babysit', *RUN)
  waits.until(machine.waiting, child)
  child.send_signal(signal.SIGTERM)
  _, err = child.communicate()
  assert child.returncode == 143 and f'{NAME} may still be there and cost money' in err
  machine.run('tpu.sh', 'delete', *HERE)
