"""Tests on machines without a home, a locale or a temporary folder, or with a clock that jumps."""

import os
import subprocess
import sys

import disturbed
import pytest

# Each call of time.time() jumps by hours or days, forwards or back.
CLOCK = """
import itertools, sys, time
now, jumps = time.time, itertools.cycle([0, -86400, 86400, 3600])
time.time = lambda: now() + next(jumps)
from gdistill.cli import exit_codes, train
exit_codes.exit_process(train.main(sys.argv[1:]))
"""


def poor(tmp_path):
  """Returns an environment without HOME, and with the locale C."""
  nowhere = tmp_path / 'nowhere'
  nowhere.mkdir(mode=0o500)
  kept = ('PATH', 'JAX_PLATFORMS', 'JAX_COMPILATION_CACHE_DIR', 'LD_PRELOAD', 'OPENBLAS_CORETYPE')
  return {k: v for k, v in os.environ.items() if k in kept} | {'LC_ALL': 'C', 'LANG': 'C'}


def ends_as(workdir, undisturbed, done):
  assert done.returncode == 0, done.stderr[-2000:]
  assert disturbed.digests(workdir) == disturbed.digests(undisturbed)
  assert disturbed.figures(workdir) == disturbed.figures(undisturbed)


def test_without_home_and_locale_and_for_its_owner_only(undisturbed, tmp_path):
  workdir = tmp_path / 'run'
  words = disturbed.command(workdir)
  done = subprocess.run(
    ['bash', '-c', 'umask 077; exec "$@"', '-', *words], cwd=disturbed.ROOT, env=poor(tmp_path),
    capture_output=True, text=True,
  )  # fmt: skip
  ends_as(workdir, undisturbed, done)
  assert all(p.stat().st_mode & 0o077 == 0 for p in workdir.rglob('*'))


def test_with_a_clock_that_jumps(undisturbed, tmp_path):
  workdir = tmp_path / 'run'
  done = subprocess.run(
    [sys.executable, '-c', CLOCK, *disturbed.command(workdir)[3:]], cwd=disturbed.ROOT,
    env=disturbed.environment({}), capture_output=True, text=True,
  )  # fmt: skip
  ends_as(workdir, undisturbed, done)


@pytest.mark.skipif(os.geteuid() != 0, reason='mounts a file system that cannot be written')
def test_without_a_place_for_temporary_files(undisturbed, tmp_path):
  # The run has its own mount namespace, so that no other process's /tmp changes. The folders for
  # temporary files are read-only there; Python then falls back on the current folder.
  workdir, real = tmp_path / 'run', tmp_path / 'real'
  real.mkdir()
  words = disturbed.command(workdir)
  script = (
    f'set -e; mkdir -p {real}; mount --bind {tmp_path} /mnt; '
    'for d in /tmp /var/tmp /usr/tmp; do [ -d $d ] && mount -t tmpfs -o ro tmpfs $d; done; '
    f'cd /; mkdir -p {tmp_path} 2>/dev/null || true; exec "$@"'
  )
  words = [w.replace(str(tmp_path), '/mnt') for w in words]
  done = subprocess.run(
    ['unshare', '-m', 'bash', '-c', script, '-', *words],
    env=disturbed.environment({'PYTHONPATH': str(disturbed.ROOT)}), capture_output=True, text=True,
  )  # fmt: skip
  if 'unshare' in done.stderr or 'mount:' in done.stderr:
    pytest.skip(f'needs mount namespaces: {done.stderr.splitlines()[0]}')
  ends_as(workdir, undisturbed, done)
