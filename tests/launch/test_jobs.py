"""Slurm, GKE, SkyPilot and one GPU machine: what is submitted, and what follows an exit code."""

import json
import signal
import subprocess

import pytest
import waits
import yaml

pytestmark = pytest.mark.full

SLURM = ['--run_id=Run_1', '--config=configs/digits.py', '--nodes=2', '--gpus=4']
GKE = ['--run_id=Run_1', '--config=configs/digits.py', '--tpu_type=v5litepod-16',
       '--bucket=gs://bucket/runs', '--image=europe-docker.pkg.dev/p/r/gdistill:1']  # fmt: skip
XPK = ['--xpk', '--cluster=c', '--zone=us-west4-a', '--project=my-project']
SKY = ['--run_id=Run_1', '--config=configs/digits.py', '--bucket=gs://bucket/runs',
       '--tpu_type=v5litepod-8']  # fmt: skip
GPU = ['--run_id=Run_1', '--config=configs/digits.py', '--gpus=4']
SUBMIT = {'slurm.sh': SLURM, 'gke.sh': GKE, 'sky.sh': SKY}


@pytest.mark.parametrize(
  ('script', 'words', 'line'),
  [
    ('slurm.sh', ['--run_id=a/b'], "--run_id='a/b' must be"),
    ('slurm.sh', ['--nodes=0'], "--nodes='0' must be a whole number"),
    ('slurm.sh', ['--gpus=x'], "--gpus='x' must be a whole number"),
    ('slurm.sh', ['--time=soon'], "--time='soon' must be minutes"),
    ('slurm.sh', ['--partition=a b'], "--partition='a b' is not a valid name"),
    ('slurm.sh', ['--config='], '--config is missing'),
    ('slurm.sh', ['--config.hub.token=1'], 'looks like a secret'),
    ('gke.sh', ['--tpu_type=h100-8'], "--tpu_type='h100-8' must be v4-N"),
    ('gke.sh', ['--image=a b'], "--image='a b' is not a valid name"),
    ('gke.sh', ['--topology=4x5'], "--topology='4x5' must have the 16 chips"),
    ('gke.sh', ['--topology=4*4'], "--topology='4*4' must be such as"),
    ('gke.sh', ['--tpu_type=v4-24'], 'has no usual topology; give --topology'),
    ('gke.sh', ['--namespace=A'], "--namespace='A' must be 1 to 63"),
    ('gke.sh', ['--bucket=/disk'], "--bucket='/disk' must be gs://"),
    ('gke.sh', ['--xpk'], '--zone is missing'),
    ('sky.sh', ['--gpus=H100:8'], 'exclude each other'),
    ('sky.sh', ['--tpu_type=', '--gpus=H100'], "--gpus='H100' must be NAME:COUNT"),
    ('sky.sh', ['--tpu_type='], '--tpu_type is missing'),
    ('sky.sh', ['--infra=; ls'], "--infra='; ls' must be such as"),
  ],
)
def test_wrong_inputs_submit_nothing(machine, script, words, line):
  done = machine.run(script, 'submit', *SUBMIT[script], *words)
  assert done.returncode == 2 and line in done.stderr
  assert {c[0] for c in machine.calls()} <= {'python'}


@pytest.mark.parametrize('script', SUBMIT)
@pytest.mark.parametrize('more', [[], ['--dry-run']])
def test_a_batch_that_does_not_divide_is_refused_before_anything(machine, script, more):
  line = 'gdistill: teacher.batch_size=60 must be divisible\n'
  machine.scenario(plan=[2, line])
  done = machine.run(script, 'submit', *SUBMIT[script], *more)
  assert (done.returncode, done.stderr) == (2, line)
  assert {c[0] for c in machine.calls()} == {'python'}


@pytest.mark.parametrize(
  ('script', 'words', 'devices'),
  [
    ('slurm.sh', SLURM, 8), ('slurm.sh', [*SLURM, '--cpu'], 6), ('gke.sh', GKE, 16),
    ('gke.sh', [*GKE, '--slices=2'], 32), ('gke.sh', [*GKE, *XPK, '--tpu_type=v4-16'], 8),
    ('sky.sh', SKY, 8), ('sky.sh', [*SKY, '--tpu_type=', '--gpus=H100:4'], 4),
  ],
)  # fmt: skip
def test_a_dry_run_plans_for_the_devices_and_submits_nothing(machine, script, words, devices):
  machine.scenario(cpu_devices=3)
  done = machine.run(script, 'submit', *words, '--dry-run')
  assert done.returncode == 0 and 'runs/Run_1' in done.stdout
  assert {call[0] for call in machine.calls()} == {'python'}
  [call] = machine.calls('python', '--plan')
  assert f'--devices={devices}' in call


@pytest.mark.parametrize('script', [*SUBMIT, 'gpu.sh'])
def test_an_unknown_command_names_the_known_ones(machine, script):
  done = machine.run(script, 'launch')
  assert done.returncode == 2 and "'launch' is not a command" in done.stderr
  assert 'one of' in done.stderr
  assert machine.run(script).returncode == 2


# ---- Slurm


def submitted(machine, *more):
  machine.scenario(squeue=[[0, '']], sbatch=[[0, '17\n']])
  assert machine.run('slurm.sh', 'submit', *SLURM, '--time=1:00:00', *more).returncode == 0
  return machine.calls('sbatch')[-1]


def test_slurm_is_asked_to_requeue_and_to_warn_before_the_time_is_up(machine):
  call = submitted(machine, '--config.seed=1')
  assert {
    '--requeue', '--signal=B:TERM@120', '--nodes=2', '--ntasks-per-node=1', '--gpus-per-node=4',
    '--time=1:00:00', '--job-name=gdistill-Run_1',
  } <= set(call)  # fmt: skip
  script = call.index('launch/slurm.sbatch')
  assert call[script + 1 :] == [
    str(machine.root), f'{machine.root}/runs/Run_1', 'configs/digits.py', '--config.seed=1',
  ]  # fmt: skip


def test_a_run_is_submitted_once(machine):
  machine.scenario(squeue=[[0, '17 RUNNING None\n']])
  done = machine.run('slurm.sh', 'submit', *SLURM)
  assert done.returncode == 2 and '17 RUNNING' in done.stderr and not machine.calls('sbatch')
  machine.scenario(squeue=['hang'])
  done = machine.run('slurm.sh', 'submit', *SLURM, SLURM_SECONDS='1')
  assert done.returncode == 1 and 'nothing was submitted' in done.stderr
  assert not machine.calls('sbatch')


def batch(machine, **environment):
  """Starts the batch script on its first node, as Slurm would."""
  words = [str(machine.root), f'{machine.root}/runs/Run_1', 'configs/digits.py']
  return machine.start(
    'slurm.sbatch', *words, SLURM_JOB_ID='17', GPUS='4', PEER_SECONDS='300', **environment
  )  # fmt: skip


def test_a_job_restarts_inside_its_time(machine):
  machine.scenario(program=[134, 134, 0, 0])
  child = batch(machine)
  child.communicate()
  assert child.returncode == 0 and len(machine.calls('srun')) == 2
  assert not machine.calls('scontrol')


def test_the_first_task_to_leave_decides_and_not_the_highest_code(machine):
  # The second task leaves once the first one has noted when it left.
  later = {'once': 'repo/runs/.tasks.*/0', 'code': 134}
  machine.scenario(**{'program-0': [3], 'program-1': [later]})
  child = batch(machine)
  _, err = child.communicate()
  assert child.returncode == 3 and len(machine.calls('srun')) == 1 and 'exit code 3' in err


@pytest.mark.parametrize(('before', 'again'), [('0', True), ('2', False)])
def test_a_job_whose_time_is_up_saves_and_queues_itself_again(machine, before, again):
  machine.scenario(program=['until asked'])
  child = batch(machine, SLURM_RESTART_COUNT=before, MAX_REQUEUES='2')
  waits.until(lambda: machine.waiting() == 2, child)
  child.send_signal(signal.SIGTERM)
  out, _ = child.communicate()
  assert child.returncode == 42 and out.count('saved') == 2
  assert machine.calls('scontrol') == ([['scontrol', 'requeue', '17']] if again else [])


def test_a_job_that_is_stopped_does_not_queue_itself_again(machine):
  machine.scenario(program=['until asked'])
  stop = machine.root / 'runs' / '.logs' / 'Run_1' / 'stop'
  child = batch(machine, STOP_FILE=str(stop))
  waits.until(lambda: machine.waiting() == 2, child)
  stop.parent.mkdir(parents=True)
  assert machine.run('slurm.sh', 'stop', *SLURM).returncode == 0
  pending, running = machine.calls('scancel')
  assert '--state=PENDING' in pending and '--signal=TERM' in running
  child.send_signal(signal.SIGTERM)  # as scancel does
  child.communicate()
  assert child.returncode == 42 and not machine.calls('scontrol')
  assert f'STOP_FILE={stop}' in ' '.join(submitted(machine)) and not stop.exists()


def test_a_job_that_was_stopped_before_it_began_does_not_begin(machine):
  machine.scenario(program=[0, 0])
  stop = machine.folder / 'stop'
  stop.touch()
  child = batch(machine, STOP_FILE=str(stop))
  child.communicate()
  assert child.returncode == 0 and not machine.programs() and not machine.calls('scontrol')


# ---- GKE


def jobset(machine, *more):
  machine.scenario(kubectl=[[0, '']])
  done = machine.run('gke.sh', 'submit', *GKE, *more)
  assert done.returncode == 0, done.stderr
  return yaml.safe_load((machine.folder / 'applied.yaml').read_text())


def test_the_jobset_has_the_hosts_and_chips_of_the_slice(machine):
  made = jobset(machine, '--slices=2', '--spot', '--config.note=say "a\\b"')
  job = made['spec']['replicatedJobs'][0]
  assert job['replicas'] == 2
  spec = job['template']['spec']
  assert (spec['parallelism'], spec['completions'], spec['backoffLimit']) == (4, 4, 0)
  pod = spec['template']['spec']
  assert pod['nodeSelector'] == {
    'cloud.google.com/gke-tpu-accelerator': 'tpu-v5-lite-podslice',
    'cloud.google.com/gke-tpu-topology': '4x4',
    'cloud.google.com/gke-spot': 'true',
  }
  [container] = pod['containers']
  assert container['resources']['limits'] == {'google.com/tpu': 4}
  assert container['command'][-2:] == ['--config.note=say "a\\b"', '--config.mesh.slices=2']
  start = ['bash', 'launch/supervise.sh', '--workdir=gs://bucket/runs/Run_1']
  assert container['command'][:3] == start


def test_kubernetes_restarts_what_was_lost_and_nothing_that_needs_a_person(machine):
  made = jobset(machine)
  policy = made['spec']['failurePolicy']
  assert policy['maxRestarts'] == 100
  assert policy['rules'] == [{'action': 'FailJobSet', 'onJobFailureReasons': ['PodFailurePolicy']}]
  spec = made['spec']['replicatedJobs'][0]['template']['spec']
  [rule] = spec['podFailurePolicy']['rules']
  assert rule['action'] == 'FailJob' and rule['onExitCodes']['values'] == [2, 3, 4, 5, 75]
  [container] = spec['template']['spec']['containers']
  assert {'name': 'EXHAUSTED_CODE', 'value': '75'} in container['env']
  assert 'cloud.google.com/gke-spot' not in spec['template']['spec']['nodeSelector']


def test_a_jobset_dry_run_prints_the_manifest_that_a_run_applies(machine):
  printed = machine.run('gke.sh', 'submit', *GKE, '--dry-run').stdout
  text = printed.split("<<'YAML'\n")[1].removesuffix('YAML\n')
  assert yaml.safe_load(text) == jobset(machine)


def test_a_jobset_that_exists_is_not_replaced(machine):
  machine.scenario(kubectl=[[0, 'jobset.jobset.x-k8s.io/x\n']])
  done = machine.run('gke.sh', 'submit', *GKE)
  assert done.returncode == 2 and 'has a JobSet already' in done.stderr
  machine.scenario(kubectl=['hang'])
  done = machine.run('gke.sh', 'submit', *GKE, KUBE_SECONDS='1')
  assert done.returncode == 1 and 'nothing was submitted' in done.stderr
  assert not (machine.folder / 'applied.yaml').exists()


def test_secrets_go_to_kubernetes_by_file(machine):
  secrets = machine.folder / 'secrets'
  secrets.write_text('HF_TOKEN=hf_1\n')
  secrets.chmod(0o600)
  made = jobset(machine, f'--secrets={secrets}')
  job = made['spec']['replicatedJobs'][0]['template']['spec']
  [container] = job['template']['spec']['containers']
  assert container['envFrom'][0]['secretRef']['name'] == made['metadata']['name']
  assert machine.calls('kubectl', 'secret', f'--from-env-file={secrets}')
  assert 'hf_1' not in (machine.folder / 'calls.jsonl').read_text()


def test_xpk_gets_the_slices_and_a_supervisor_it_can_signal(machine):
  assert machine.run('gke.sh', 'submit', *GKE, *XPK, '--slices=2').returncode == 0
  [call] = machine.calls('xpk')
  assert {'--tpu-type=v5litepod-16', '--num-slices=2', '--max-restarts=100'} <= set(call)
  [command] = [a for a in call if a.startswith('--command=')]
  assert command.startswith('--command=exec env EXHAUSTED_CODE=75 RESTART_COUNT=1 ')
  assert 'RESTART_SECONDS=60' in command and '--config.mesh.slices=2' in command
  machine.scenario(xpk=['hang'])
  done = machine.run('gke.sh', 'submit', *GKE, *XPK, XPK_SECONDS='1')
  assert done.returncode == 124 and 'no answer in 1 seconds from: xpk' in done.stderr


@pytest.mark.parametrize('command', ['status', 'logs', 'delete'])
@pytest.mark.parametrize('more', [[], XPK])
def test_gke_commands_name_the_run(machine, command, more):
  assert machine.run('gke.sh', command, *GKE, *more).returncode == 0
  calls = [c for c in machine.calls() if c[0] in ('kubectl', 'xpk')]
  assert calls and all('gdistill-run-1-d7513394' in ' '.join(c) for c in calls)


# ---- SkyPilot


def test_sky_gets_a_managed_job(machine):
  secrets = machine.folder / 'secrets'
  secrets.write_text('HF_TOKEN=hf_1\n')
  secrets.chmod(0o600)
  more = ['--spot', f'--secrets={secrets}', '--config.a=x y', '--config.seed=1']
  assert machine.run('sky.sh', 'submit', *SKY, *more).returncode == 0
  [call] = machine.calls('sky')
  assert call[1:4] == ['jobs', 'launch', 'launch/sky.yaml']
  assert {
    '--gpus=tpu-v5litepod-8:1', '--use-spot', 'WORKDIR=gs://bucket/runs/Run_1',
    'OVERRIDES=--config.a=x y\n--config.seed=1', f'--secret-file={secrets}',
  } <= set(call)  # fmt: skip
  assert 'hf_1' not in (machine.folder / 'calls.jsonl').read_text()


def test_the_task_of_sky_yaml_runs_under_the_restart_policy(machine):
  task = yaml.safe_load((machine.root / 'launch' / 'sky.yaml').read_text())
  assert task['resources']['job_recovery'] == {'max_restarts_on_errors': 0}
  (machine.root / '.venv' / 'bin').mkdir(parents=True)
  (machine.root / '.venv' / 'bin' / 'python').symlink_to(machine.bin / 'python')
  machine.scenario(program=[42, 0])
  given = {'WORKDIR': 'runs/a', 'CONFIG': 'configs/digits.py'}
  given['OVERRIDES'] = '--config.a=x y\n--config.b=2'
  subprocess.run(
    ['bash', '-c', task['run']], cwd=machine.root, check=True,
    env={**machine.environment, **{k: str(v) for k, v in task['envs'].items()}, **given,
         'RESTART_SECONDS': '0'},
  )  # fmt: skip
  assert len(machine.programs()) == 2
  assert machine.programs()[0][-2:] == ['--config.a=x y', '--config.b=2']


# ---- one machine with GPUs


@pytest.mark.parametrize(
  ('driver', 'extra'), [('580.65.06', 'jax[cuda13]'), ('550.54.14', 'jax[cuda12]')]
)
def test_the_driver_chooses_the_cuda_wheels(machine, driver, extra):
  machine.scenario(**{'nvidia-smi': [[0, f'{driver}\n']]})
  done = machine.run('gpu.sh', 'setup', '--dry-run')
  assert done.returncode == 0 and extra.replace('[', '\\[').replace(']', '\\]') in done.stdout


@pytest.mark.parametrize(
  ('answer', 'line'),
  [([9, ''], 'nvidia-smi names no driver'), ([0, '470.1\n'], '470.1 is too old')],
)
def test_a_machine_without_a_usable_driver_is_told(machine, answer, line):
  machine.scenario(**{'nvidia-smi': [answer]})
  done = machine.run('gpu.sh', 'setup')
  assert done.returncode == 2 and line in done.stderr
  assert not machine.calls('python', 'pip')


def test_a_gpu_run_counts_the_gpus_and_restarts(machine):
  machine.scenario(**{'nvidia-smi': [[0, 'GPU 0: H100\nGPU 1: H100\n']], 'program': [42, 0]})
  done = machine.run('gpu.sh', 'run', *GPU[:2])
  assert done.returncode == 0 and len(machine.programs()) == 2
  assert '--devices=2' in machine.calls('python', '--plan')[0]
  assert json.dumps(machine.programs()[0]).count('--workdir=') == 1
  done = machine.run('gpu.sh', 'run', *GPU[:2], '--gpus=2', '--dry-run')
  assert done.stdout.startswith('env CUDA_VISIBLE_DEVICES=0\\,1 bash launch/supervise.sh')
  # CUDA_VISIBLE_DEVICES gives the number of GPUs for the plan, and is not overridden.
  done = machine.run('gpu.sh', 'run', *GPU[:2], CUDA_VISIBLE_DEVICES='4,5,6')
  assert done.returncode == 0 and '--devices=3' in machine.calls('python', '--plan')[-1]
  done = machine.run('gpu.sh', 'run', *GPU[:2], CUDA_VISIBLE_DEVICES='-1')
  assert done.returncode == 2 and 'hides every GPU' in done.stderr
  done = machine.run('gpu.sh', 'run', *GPU[:2], '--gpus=2', CUDA_VISIBLE_DEVICES='4')
  assert (
    done.returncode == 2 and "--gpus='2' is not the 1 that CUDA_VISIBLE_DEVICES=4" in done.stderr
  )
