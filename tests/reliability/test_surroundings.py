"""Tests on machines without a home, a locale or a temporary folder, or with a clock that jumps."""

import os
import shutil
import subprocess
import sys

import bare
import disturbed
import pytest

pytestmark = pytest.mark.full

# Each call of time.time() jumps by hours or days, forwards or back.
CLOCK = """
import itertools, sys, time
now, jumps = time.time, itertools.cycle([0, -86400, 86400, 3600])
time.time = lambda: now() + next(jumps)
from gdistill.cli import exit_codes, train
exit_codes.exit_process(train.main(sys.argv[1:]))
"""


def poor():
  """Returns an environment without HOME, and with the locale C."""
  names = (
    'JAX_PLATFORMS', 'JAX_COMPILATION_CACHE_DIR', 'XLA_FLAGS', 'LD_PRELOAD', 'OPENBLAS_CORETYPE',
  )  # fmt: skip
  kept = {k: v for k, v in os.environ.items() if k in names}
  return bare.environment(os.environ['PATH'], **kept, LC_ALL='C', LANG='C')


def ends_as(workdir, undisturbed, done):
  assert done.returncode == 0, done.stderr[-2000:]
  assert disturbed.digests(workdir) == disturbed.digests(undisturbed)
  assert disturbed.figures(workdir) == disturbed.figures(undisturbed)


def test_without_home_and_locale_and_for_its_owner_only(undisturbed, tmp_path):
  workdir = tmp_path / 'run'
  words = disturbed.command(workdir)
  done = subprocess.run(
    ['bash', '-c', 'umask 077; exec "$@"', '-', *words], cwd=disturbed.ROOT, env=poor(),
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


# Runs a command where the folders for temporary files are read-only. The repository and the
# interpreter may lie in these folders, so their files stay visible. Only $1, the test's own folder,
# stays writable. The current folder is read-only too, because Python would fall back on it.
READ_ONLY = """
set -e
mount --bind "$1" "$1"
for folder in /tmp /var/tmp /usr/tmp; do
  if [ -d "$folder" ]; then
    mount --rbind "$folder" "$folder"
    # A user who is not root must keep `noexec` if the folder has it.
    mount -o remount,bind,ro,nosuid,nodev "$folder" ||
      mount -o remount,bind,ro,nosuid,nodev,noexec "$folder"
  fi
done
cd /tmp
shift
exec "$@"
"""


def test_without_a_place_for_temporary_files(undisturbed, tmp_path):
  # The run has its own mount namespace, so that no other process's /tmp changes. A user who is not
  # root gets a mount namespace only together with a user namespace.
  unshare = ['unshare', '--mount', *(['--user', '--map-root-user'] if os.geteuid() else [])]
  sandbox = [*unshare, 'bash', '-c', READ_ONLY, '-', str(tmp_path)]
  places = dict.fromkeys(('TMPDIR', 'TEMP', 'TMP'), '/tmp')  # noqa: S108
  # The cache of the machine may lie in a folder for temporary files.
  places['XDG_CACHE_HOME'] = str(tmp_path / 'cache')

  def run(*words):
    env = disturbed.environment({'PYTHONPATH': str(disturbed.ROOT), **places})
    return subprocess.run([*sandbox, *words], env=env, capture_output=True, text=True)

  if shutil.which('unshare') is None:
    pytest.skip('needs the command unshare, of util-linux')
  permitted = run('true')
  if permitted.returncode:
    pytest.skip(f'may not make a folder read-only: {permitted.stderr.strip()}')
  found = run(sys.executable, '-c', 'import tempfile; tempfile.gettempdir()')
  assert 'No usable temporary directory' in found.stderr
  workdir = tmp_path / 'run'
  ends_as(workdir, undisturbed, run(*disturbed.command(workdir)))
