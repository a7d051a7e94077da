"""Tests that memory, open files, threads and compiles do not grow over many updates."""

import json
import subprocess
import sys

import disturbed
import numpy as np
import pytest

SCRIPT = """
import json, os, sys, threading
import jax
from gdistill.cli import train as command
from gdistill.training import loop
from gdistill.workdir import step_checkpoints

every, rows, compiled, looks, savers = int(sys.argv[1]), [], [0], [0], []
jax.monitoring.register_event_duration_secs_listener(
  lambda name, seconds, **more: compiled.__setitem__(0, compiled[0] + ('backend_compile' in name))
)
check, save = loop.Finite.check, step_checkpoints.Saver.save

def look(*args):
  looks[0] += 1
  if looks[0] % every == 0:
    for saver in savers:  # a save in progress has files open
      saver.wait()
    status = open('/proc/self/status').read().split()
    rows.append({
      'update': looks[0], 'kB': int(status[status.index('VmRSS:') + 1]),
      'files': len(os.listdir('/proc/self/fd')), 'threads': threading.active_count(),
      'compiled': compiled[0],
    })
  check(*args)

def saved(saver, *args):
  savers[:] = [saver]
  save(saver, *args)

loop.Finite.check, step_checkpoints.Saver.save = look, saved
code = command.main(sys.argv[2:])
print(json.dumps(rows))
sys.exit(code)
"""


@pytest.mark.parametrize(
  'updates',
  [pytest.param(1200, marks=pytest.mark.full), pytest.param(20_000, marks=pytest.mark.soak)],
)
def test_nothing_grows(tmp_path, updates, record_property):
  workdir = tmp_path / 'run'
  disturbed.config(
    workdir, stages=('teacher',), teacher=dict(steps=updates),
    train=dict(checkpoint_every=updates // 40, log_every=updates // 40),
  )  # fmt: skip
  done = subprocess.run(
    [sys.executable, '-c', SCRIPT, str(updates // 20), *disturbed.command(workdir)[3:]],
    cwd=disturbed.ROOT, capture_output=True, text=True, env=disturbed.environment({}),
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  rows = json.loads(done.stdout.splitlines()[-1])
  found = {k: np.array([r[k] for r in rows]) for k in rows[0]}
  assert found['update'][-1] >= 0.95 * updates
  late = slice(len(rows) // 2, None)  # by then the memory of compiling is free again
  more = {}
  for name in ('files', 'threads'):
    more[name] = found[name][-6:].min() - found[name][late][:6].min()
    assert more[name] <= 0, (name, found[name])
  assert found['compiled'][late].max() == found['compiled'][late].min(), found['compiled']
  slope = np.polyfit(found['update'][late], found['kB'][late], 1)[0]
  grown = (found['kB'][-4:].mean() - found['kB'][late][:4].mean()) / 1024
  assert grown < 8, found['kB']
  record_property(
    f'over {updates:,} updates',
    f'{grown:+.1f} MiB, {1000 * slope:+.1f} kB per thousand updates, files {more["files"]:+d}, '
    f'threads {more["threads"]:+d}, compiled 0',
  )
