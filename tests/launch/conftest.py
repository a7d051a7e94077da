"""A machine without a cloud: fakes of the cloud commands on PATH, which log every call."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import stat
import subprocess
import sys
import threading

import pytest
import waits

ROOT = pathlib.Path(__file__).parent.parent.parent
NAMES = [
  'gcloud', 'kubectl', 'xpk', 'sbatch', 'squeue', 'scancel', 'scontrol', 'srun', 'sky', 'ssh',
  'nvidia-smi', 'python', 'sudo',
]  # fmt: skip

FAKE = pathlib.Path(__file__).with_name('fake.py').read_text()


class Launcher(subprocess.Popen):
  """A launcher whose lines are read as they come, so that a test can wait for one of them."""

  def __init__(self, words: list[str], **more):
    super().__init__(
      words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
      **more,
    )  # fmt: skip
    self._said = [], []
    self._readers = [
      threading.Thread(target=lines.extend, args=(pipe,), daemon=True)
      for lines, pipe in zip(self._said, (self.stdout, self.stderr), strict=True)
    ]
    for reader in self._readers:
      reader.start()

  def says(self, words: str) -> None:
    """Waits until stderr has these words."""
    waits.until(lambda: words in ''.join(self._said[1]), self)

  def communicate(self, input=None, timeout: float = waits.SECONDS) -> tuple[str, str]:
    self.wait(timeout)
    for reader in self._readers:
      reader.join(timeout)
      assert not reader.is_alive(), 'a process that the launcher started still runs'
    return ''.join(self._said[0]), ''.join(self._said[1])


class Machine:
  """A copy of the launchers in a git repository, run with the fakes first on PATH.

  `scenario(...)` sets the answers of the fakes.
  """

  def __init__(self, folder: pathlib.Path):
    self.folder, self.root = folder, folder / 'repo'
    self.bin = folder / 'bin'
    self.bin.mkdir()
    for name in NAMES:
      file = self.bin / name
      file.write_text(f'#!{sys.executable} -IS\n{FAKE}')
      file.chmod(file.stat().st_mode | stat.S_IXUSR)
    (self.bin / 'python3.13').symlink_to('python')
    shutil.copytree(ROOT / 'launch', self.root / 'launch')
    for name in ('setup.py', 'requirements.txt', 'requirements-latest.txt'):
      shutil.copy(ROOT / name, self.root)
    (self.root / 'configs').mkdir()
    (self.root / 'configs' / 'digits.py').write_text('')
    (self.root / '.gitignore').write_text('runs/\n')
    git = ['git', '-c', 'user.name=x', '-c', 'user.email=x@x', '-c', 'init.defaultBranch=main']
    for words in (['init', '-q'], ['add', '-A'], ['commit', '-qm', 'x']):
      subprocess.run([*git, *words], cwd=self.root, check=True)
    self.environment = {
      'PATH': f'{self.bin}:{os.environ["PATH"]}',
      'HOME': str(folder),
      'FAKES': str(folder),
      'GDISTILL_PYTHON': str(self.bin / 'python'),
      'RESTART_SECONDS': '0', 'POLL_SECONDS': '0.2', 'BACKOFF_SECONDS': '0', 'BACKOFF_MOST': '0',
      'TRY_SECONDS': '0', 'PEER_SECONDS': '0', 'STOP_SECONDS': '300', 'LEASE_SECONDS': '0',
    }  # fmt: skip
    self.scenario()

  def scenario(self, **answers) -> None:
    (self.folder / 'scenario.json').write_text(json.dumps(answers))

  def start(self, script: str, *arguments: str, **environment: str) -> Launcher:
    words = ['bash', f'launch/{script}', *arguments]
    return Launcher(words, cwd=self.root, env={**self.environment, **environment})

  def run(self, script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    child = self.start(script, *arguments, **environment)
    out, err = child.communicate()
    return subprocess.CompletedProcess(child.args, child.returncode, out, err)

  def calls(self, name: str = '', *words: str) -> list[list[str]]:
    """Returns the calls of the fakes, of one command if named, that contain all the words."""
    file = self.folder / 'calls.jsonl'
    lines = file.read_text().splitlines() if file.exists() else []
    calls = [json.loads(line) for line in lines]
    return [c for c in calls if (not name or c[0] == name) and all(w in ' '.join(c) for w in words)]

  def waiting(self) -> int:
    """Returns how many programs have come to the point where they wait."""
    return len(list(self.folder.glob('waiting/*')))

  def programs(self) -> list[list[str]]:
    return [c for c in self.calls('python', 'gdistill.main') if '--plan' not in c]


@pytest.fixture
def machine(tmp_path):
  made = Machine(tmp_path)
  yield made
  # A failed test may leave programs running.
  for file in tmp_path.glob('slice*/*/gdistill/runs/*/pid'):
    with contextlib.suppress(OSError, ValueError):
      os.killpg(int(file.read_text()), signal.SIGKILL)
