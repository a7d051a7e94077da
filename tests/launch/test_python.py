"""Tests of the choice of the Python and of the exact package versions that belong to it."""

import pathlib
import re
import subprocess
import sys

import bare
import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent
SETS = {'requirements.txt': '3.11', 'requirements-latest.txt': '3.13'}


def shell(commands, path, **environment):
  return subprocess.run(
    ['bash', '-c', f'source launch/python.sh; {commands}'], cwd=ROOT, text=True,
    capture_output=True,
    env=bare.environment(f'{path}:/usr/bin:/bin', HOME=path, **environment),
  )  # fmt: skip


def pythons(folder, *versions):
  """Makes commands such as python3.12 that accept the check of their own version only."""
  for version in versions:
    file = folder / f'python{version}'
    file.write_text(f'#!/bin/bash\n[[ "${{@: -1}}" == {version} ]]\n')
    file.chmod(0o755)


@pytest.mark.parametrize(
  ('there', 'taken'),
  [(('3.11', '3.12', '3.13'), '3.13'), (('3.11', '3.12'), '3.12'), (('3.11', '3.14'), '3.11')],
)
def test_the_newest_supported_python_is_taken(tmp_path, there, taken):
  pythons(tmp_path, *there)
  if {'3.12', '3.13'} - set(there):  # a newer one of the machine itself would be taken
    hidden = [v for v in ('3.13', '3.12') if pathlib.Path(f'/usr/bin/python{v}').exists()]
    if hidden:
      pytest.skip(f'/usr/bin has Python {hidden[0]}')
  assert shell('newest_python', tmp_path).stdout == f'python{taken}\n'


def test_a_python_of_pyenv_counts_although_it_is_not_selected(tmp_path):
  pythons(tmp_path, '3.11')
  folder = tmp_path / 'pyenv' / 'versions' / '3.13.7' / 'bin'
  folder.mkdir(parents=True)
  pythons(folder, '3.13')
  (folder / 'python3.13').rename(folder / 'python')
  found = shell('newest_python', tmp_path, PYENV_ROOT=str(tmp_path / 'pyenv'))
  assert found.stdout == f'{folder}/python\n'
  assert shell('find_python 3.10', tmp_path).returncode == 1


def test_the_one_that_is_given_is_taken_or_nothing(tmp_path):
  pythons(tmp_path, '3.13')
  given = shell('newest_python', tmp_path, PYTHON=sys.executable)
  assert given.stdout == f'{sys.executable}\n'
  missing = shell('newest_python', tmp_path, PYTHON='/nowhere/python')
  assert missing.returncode and not missing.stdout


def test_a_python_has_the_set_of_versions_that_was_tested_with_it(tmp_path):
  expected = 'requirements.txt' if sys.version_info < (3, 12) else 'requirements-latest.txt'
  assert shell(f'pins {sys.executable}', tmp_path).stdout == f'{expected}\n'
  for name, version in SETS.items():
    lines = (ROOT / name).read_text().splitlines()
    assert lines[0].startswith('#') and version in lines[0]
    assert all(re.fullmatch(r'[A-Za-z0-9_.-]+==[\w.]+', line) for line in lines[1:])


def test_an_environment_of_another_python_is_refused(tmp_path):
  for folder, words in (('bin', 'Python 3.12.1'), ('', 'Python 3.13.7')):
    file = tmp_path / folder / 'python'
    file.parent.mkdir(exist_ok=True)
    file.write_text(f'#!/bin/bash\n[[ $1 != --version ]] || echo {words}\n')
    file.chmod(0o755)
  done = subprocess.run(
    ['bash', '-c', "source launch/setup.sh; setup ''"], cwd=ROOT, text=True, capture_output=True,
    env=bare.environment(PYTHON=f'{tmp_path}/python', VENV=tmp_path),
  )  # fmt: skip
  assert done.returncode == 2
  assert f'is Python 3.13.7, and {tmp_path} has Python 3.12.1; remove {tmp_path}' in done.stderr
