"""Fakes gcloud, kubectl, python and the other commands: one script, installed under each name."""

import contextlib
import fcntl
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

LONG = 3600  # seconds: nothing that a test does takes as long

home = pathlib.Path(os.environ['FAKES'])
name, argv = os.path.basename(sys.argv[0]), sys.argv[1:]
scenario = json.loads((home / 'scenario.json').read_text())
with open(home / 'calls.jsonl', 'a') as f:
  f.write(json.dumps([name, *argv]) + '\n')


def turn(key, default=None):
  "Returns the next answer of a list in the scenario; the last answer repeats."
  answers = scenario.get(key, [])
  if not answers:
    return default
  with open(home / f'count.{key}', 'a+') as f:
    fcntl.flock(f, fcntl.LOCK_EX)  # two tasks at the same time must take two answers
    n = f.seek(0) or len(f.read())
    f.write('.')
  return answers[min(n, len(answers) - 1)]


def hang():
  (home / 'hanging').touch()
  time.sleep(LONG)


def flag(name):
  return next(a for a in argv if a.startswith(name)).removeprefix(name)


def waits(found):
  while not found():
    time.sleep(0.02)


def wait_here():
  "Makes it known that this program has taken its answer, and waits."
  (home / 'waiting').mkdir(exist_ok=True)
  (home / 'waiting' / str(os.getpid())).touch()


def leave(code, out='', err=''):
  sys.stdout.write(out)
  sys.stderr.write(err)
  sys.stdout.flush()
  os._exit(code)


def cloud():
  file = home / 'cloud.json'
  if not file.exists():
    return {'kind': '', 'state': '', 'slice': 0, 'asked': 0}
  return json.loads(file.read_text())


def remember(state):
  (home / 'cloud.json').write_text(json.dumps(state))


def lose(state):
  "Takes the machines of a slice away: kills every program that runs on them."
  for pid in (home / f'slice{state["slice"]}').glob('*/gdistill/runs/*/pid'):
    with contextlib.suppress(OSError, ValueError):
      os.killpg(int(pid.read_text()), signal.SIGKILL)


def gcloud():
  kind, verb = argv[2:4]
  state = cloud()
  if verb == 'create':
    answer = turn('create', 'ok')
    if answer == 'hang':
      hang()
    if answer != 'ok' and answer != 'failed':
      leave(1, err='ERROR: (gcloud.compute.tpus) ' + answer + '\n')
    ready = 'ACTIVE' if kind == 'queued-resources' else 'READY'
    state.update(kind=kind, state='FAILED' if answer == 'failed' else ready)
    state.update(slice=state['slice'] + 1, asked=0)
    remember(state)
  elif verb == 'describe':
    answer = turn('describe', 'ok')
    if answer != 'ok':
      leave(1, err='ERROR: ' + answer + '\n')
    if state['kind'] != kind:
      leave(1, err="ERROR: NOT_FOUND: Resource 'x' was not found\n")
    if 'failedData' in argv[-1]:
      leave(0, scenario.get('failure', '') + '\n')
    lives = scenario.get('preempted_after', [])
    limit = lives[state['slice'] - 1] if state['slice'] <= len(lives) else None
    if limit is not None and state['asked'] >= limit and state['state'] in ('READY', 'ACTIVE'):
      state['state'] = 'PREEMPTED' if kind == 'tpu-vm' else 'SUSPENDED'
      lose(state)
    # Only what is asked while a program runs on the slice counts.
    state['asked'] += any((home / f'slice{state["slice"]}').glob('*/began'))
    remember(state)
    leave(0, state['state'] + '\n')
  elif verb == 'delete':
    if turn('delete', 'ok') != 'ok':
      leave(1, err='ERROR: INTERNAL\n')
    lose(state)
    state.update(kind='', state='')
    remember(state)
  elif verb in ('ssh', 'scp'):
    if state['state'] not in ('READY', 'ACTIVE'):
      leave(1, err='ERROR: the TPU is not READY\n')
    answer = turn(verb, 'ok')
    if answer == 'hang':
      hang()
    worst = 0
    for host in range(scenario.get('hosts', 1)):
      if answer == '255' and host == scenario.get('hosts', 1) - 1:
        sys.stderr.write(f'##### Command execution on worker {host} failed with exit status 255.\n')
        worst = 255
        continue
      where = home / f'slice{state["slice"]}' / f'host{host}'
      where.mkdir(parents=True, exist_ok=True)
      if verb == 'scp':
        source, target = [a for a in argv[4:] if not a.startswith('-')]
        target = where / target.partition(':')[2]
        target.write_bytes(pathlib.Path(source).read_bytes())
      else:
        command = flag('--command=')
        own = {'HOME': str(where), 'HOSTNAME': f't1v-w-{host}'}
        done = subprocess.run(['bash', '-c', command], cwd=where, env={**os.environ, **own})
        code = done.returncode
        worst = worst or code
    leave(worst)


def python():
  here = os.environ.get('HOSTNAME', '') + os.environ.get('SLURM_PROCID', '')
  if argv[:1] == ['-c'] or argv[:1] == ['-']:
    if 'ensurepip' in argv[1]:
      leave(0)
    if 'gdistill' in argv[1]:
      leave(0, f'{scenario.get("cpu_devices", 1)}\n')
    os.execv(sys.executable, [sys.executable, *argv])  # noqa: S606
  if argv and argv[0].endswith('progress.py'):
    if '://' in argv[1]:
      answer = turn('progress')
      leave(1) if answer is None else leave(0, f'{answer}\n')
    os.execv(sys.executable, [sys.executable, *argv])  # noqa: S606
  if argv[:2] == ['-m', 'venv']:
    bin = pathlib.Path(argv[2]) / 'bin'
    bin.mkdir(parents=True)
    shutil.copy(home / 'bin' / 'python', bin / 'python')
    leave(0)
  if argv[:2] == ['-m', 'pip']:
    leave(turn('pip', 0))
  if '--kept' in argv:
    leave(*scenario.get('kept', [2, '', 'gdistill: not compiled yet\n']))
  if '--plan' in argv:
    code, line = scenario.get('plan', [0, ''])
    leave(code, 'the plan\n', line)
  # any other call is gdistill.main
  answer = turn('program-' + here if 'program-' + here in scenario else 'program', 0)
  sys.stdout.write(f'{here} runs, environment says {os.environ.get("HF_TOKEN", "nothing")}\n')
  sys.stdout.flush()
  (pathlib.Path(os.environ['HOME']) / 'began').touch()
  workdir = flag('--workdir=')
  if isinstance(answer, dict):
    if 'step' in answer:
      step = pathlib.Path(workdir) / '00_teacher' / 'steps' / str(answer['step'])
      step.mkdir(parents=True, exist_ok=True)
      (step / 'manifest.json').touch()
    if 'entry' in answer:
      entry = pathlib.Path(workdir) / 'ledger' / f'{answer["entry"]:08d}-round-entered.json'
      entry.parent.mkdir(parents=True, exist_ok=True)
      entry.touch()
    if 'seconds' in answer:
      wait_here()
      time.sleep(answer['seconds'])
    if 'once' in answer:  # a file below `home`, or a pattern
      waits(lambda: any(home.glob(answer['once'])))
    answer = answer['code']
  if answer == 'until asked':

    def save(number, frame):
      time.sleep(0.3)
      leave(42, 'saved\n')

    signal.signal(signal.SIGTERM, save)
    wait_here()
    time.sleep(LONG)
    leave(9)
  if answer < 0:
    os.kill(os.getpid(), -answer)
  leave(answer)


def srun():
  while argv[0].startswith('-'):
    argv.pop(0)
  tasks, heard = [], []

  def passed_on(number, frame):
    heard.append(number)
    for t in tasks:
      t.send_signal(number)
      subprocess.run(['pkill', f'-{number}', '-P', str(t.pid)])

  signal.signal(signal.SIGTERM, passed_on)
  for i in range(scenario.get('tasks', 2)):
    tasks.append(subprocess.Popen(argv, env={**os.environ, 'SLURM_PROCID': str(i)}))
  if heard:  # the signal came before all tasks were known
    passed_on(heard[0], None)
  leave(max(t.wait() % 256 for t in tasks))


if name == 'gcloud':
  gcloud()
elif name.startswith('python'):
  python()
elif name == 'srun':
  srun()
elif name == 'kubectl' and '--filename=-' in argv:
  (home / 'applied.yaml').write_text(sys.stdin.read())
answer = turn(name, [0, ''])
if answer == 'hang':
  hang()
leave(answer[0], answer[1])
