"""Fixtures of all tests, one compile cache for all test processes, and the figures of tests."""

import atexit
import functools
import os
import pathlib
import shutil
import tempfile

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
  _cache = os.path.join(os.path.expanduser('~'), '.cache', 'gdistill-tests')
  try:
    os.makedirs(_cache, mode=0o700, exist_ok=True)
    usable = os.access(_cache, os.W_OK)
  except OSError:
    usable = False
  if not usable:  # a home that cannot be written: the cache lives as long as this process
    _cache = tempfile.mkdtemp(prefix='gdistill-tests-')
    atexit.register(shutil.rmtree, _cache, ignore_errors=True)
  os.environ['JAX_COMPILATION_CACHE_DIR'] = _cache
os.makedirs(os.environ['JAX_COMPILATION_CACHE_DIR'], mode=0o700, exist_ok=True)

import jax  # noqa: E402
import known_models  # noqa: E402
import pytest  # noqa: E402

from gdistill.core import schedule  # noqa: E402

jax.config.update('jax_numpy_rank_promotion', 'raise')


@pytest.fixture(scope='session')
def mixture() -> known_models.Mixture:
  return known_models.Mixture()


@pytest.fixture(scope='session')
def cosine() -> schedule.Schedule:
  return known_models.COSINE


@pytest.fixture(scope='session')
def micro_run(tmp_path_factory):
  """Returns the workdir of a finished micro run; a test that changes files works on a copy."""
  import ladder

  workdir = tmp_path_factory.mktemp('micro') / 'run'
  ladder.run(workdir)
  return workdir


# Files whose tests take minutes.
_LONG = (
  'tests/runs/', 'tests/benchmarks/', 'tests/reliability/', 'tests/launch/test_two_processes.py',
  'tests/training/test_run.py', 'tests/notebooks/', 'tests/cli/',
)  # fmt: skip


def pytest_collection_modifyitems(items):
  """Puts the long files first, so that no process is left with one of them at the end."""
  items.sort(key=lambda item: not item.nodeid.startswith(_LONG))


def pytest_xdist_make_scheduler(config, log):
  """With `--dist loadscope`, one process runs all files that train micro runs; see launch/test.sh.

  That process compiles the programs of a micro run once, while others run the other files.
  """
  from xdist import scheduler

  class Together(scheduler.LoadFileScheduling):
    def _split_scope(self, nodeid):
      file = super()._split_scope(nodeid)
      return 'micro' if _trains(file) else file

  return Together(config, log) if config.getvalue('dist') == 'loadscope' else None


@functools.cache
def _trains(file):
  text = (pathlib.Path(__file__).parent.parent / file).read_text()
  return 'micro_run' in text or any(
    f'\nimport {name}\n' in text for name in ('micro', 'ladder', 'disturbed')
  )


def pytest_terminal_summary(terminalreporter):
  """Prints the figures that tests recorded with `record_property`, such as '6 of 6' kills."""
  reports = [r for kind in ('passed', 'failed') for r in terminalreporter.stats.get(kind, [])]
  lines = [
    f'{r.nodeid.partition("::")[2]}: {name}: {value}'
    for r in reports for name, value in r.user_properties
  ]  # fmt: skip
  if lines:
    terminalreporter.section('figures')
    terminalreporter.write_line('\n'.join(lines))
