"""Tests that a run in an object store survives kills and ends with the same bits."""

import os
import subprocess
import sys
import time

import disturbed
import pytest
import stores

from gdistill.workdir import finished as finished_rounds
from gdistill.workdir import ledger
from gdistill.workdir import storage

pytestmark = pytest.mark.full


@pytest.fixture
def bucket(monkeypatch):
  with stores.s3(monkeypatch) as name:
    yield name


def command(tmp_path, workdir):
  file = tmp_path / 'run.json'
  if not file.exists():
    disturbed.config(tmp_path / 'run', train=dict(checkpoint_every=3, max_to_keep=1))
  return [f'--config={file}', f'--workdir={workdir}']


def killed(tmp_path, workdir, where):
  """Kills a run at a point, or some seconds after the run took its lock."""
  words = command(tmp_path, workdir)
  if isinstance(where, str):
    script = ['-c', disturbed.SCRIPT, *disturbed.POINTS[where], '1', '9', *words]
  else:
    script = ['-m', 'gdistill.main', *words]
  child = subprocess.Popen(
    [sys.executable, *script], cwd=disturbed.ROOT, env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
    stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
  )  # fmt: skip
  if not isinstance(where, str):
    while child.poll() is None and not ledger.token(workdir):
      time.sleep(0.1)
    time.sleep(where)
    child.kill()
  return child.communicate()[1], child.returncode


def digests(workdir):
  names = [n for n in storage.list_dir(workdir) if finished_rounds.is_finished(f'{workdir}/{n}')]
  return {n: finished_rounds.params_digest(f'{workdir}/{n}') for n in names}


def test_six_kills(bucket, undisturbed, tmp_path, record_property):
  workdir = f'{bucket}/run'
  plan = ('first compile', 'arrays written, no manifest', 4.0, 'card there, ledger not told',
          'hand-over', 'a cell drawn, not measured')  # fmt: skip
  for where in plan:
    lines, code = killed(tmp_path, workdir, where)
    assert code == -9, (where, lines[-2000:])
    assert 'Traceback' not in lines
  done = subprocess.run(
    [sys.executable, '-m', 'gdistill.main', *command(tmp_path, workdir)], cwd=disturbed.ROOT,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'}, capture_output=True, text=True,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-2000:]
  assert digests(workdir) == {
    n: finished_rounds.params_digest(undisturbed / n) for n in disturbed.digests(undisturbed)
  }
  told = [e['round'] for e in ledger.ledger(workdir) if e['event'] == 'round-finished']
  assert told == sorted(set(told)) and len(told) == 4
  record_property('kills survived in a store', f'{len(plan)} of {len(plan)}')
