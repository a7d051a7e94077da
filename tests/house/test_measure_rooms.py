"""The measurements of docs/measure_rooms.py, on small packages whose numbers are known."""

import json
import subprocess
import sys

import measure_rooms
import pytest

TREE = {
  '__init__.py': '',
  'errors.py': 'def brief():\n  pass\n',
  'main.py': 'from gdistill.top import command\n',
  'base/__init__.py': '"""The ground.\n\nA second line.\n"""\n',
  'base/a.py': 'from gdistill import errors\n',
  'base/b.py': 'from gdistill.base import a\nimport jax\n',
  'top/__init__.py': '"""The roof.\n\nA second line.\n"""\n',
  'top/command.py': 'def run():\n  from gdistill.base import b\n',
}


@pytest.fixture
def files(tmp_path):
  """Returns a function: write(changes) gives the parsed files of TREE with some files replaced."""

  def write(changes=None):
    for name, text in (TREE | (changes or {})).items():
      path = tmp_path / 'gdistill' / name
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_text(text)
    return measure_rooms.read(tmp_path)

  return write


def test_imports_inside_functions_and_relative_imports_count(files):
  graph = measure_rooms.file_graph(
    files({'top/other.py': 'from . import command\nfrom ..base import a\n'})
  )
  assert graph['gdistill.top.command'] == {'gdistill.base.b'}
  assert graph['gdistill.top.other'] == {'gdistill.top.command', 'gdistill.base.a'}
  assert graph['gdistill.errors'] == frozenset()


def test_depth_is_the_longest_chain_and_floors_count_rooms(files):
  found = files()
  chain = measure_rooms.longest_chain(measure_rooms.file_graph(found))
  assert chain == [
    ('gdistill.main',), ('gdistill.top.command',), ('gdistill.base.b',), ('gdistill.base.a',),
    ('gdistill.errors',),
  ]  # fmt: skip
  rooms = measure_rooms.room_graph(found)
  assert measure_rooms.floors(rooms) == {'errors': 0, 'base': 1, 'top': 2, 'main': 3}
  assert len(measure_rooms.longest_chain(rooms)) == 4
  assert not measure_rooms.circles(rooms)


def test_a_circle_is_found_and_counts_as_one_link(files):
  found = files({'base/a.py': 'from gdistill import errors\nfrom gdistill.top import command\n'})
  assert measure_rooms.circles(measure_rooms.room_graph(found)) == [('base', 'top')]
  graph = measure_rooms.file_graph(found)
  circle = ('gdistill.base.a', 'gdistill.base.b', 'gdistill.top.command')
  assert measure_rooms.circles(graph) == [circle]
  assert measure_rooms.longest_chain(graph) == [('gdistill.main',), circle, ('gdistill.errors',)]


def test_files_and_functions_over_the_limit_are_listed(files):
  inner = '  def inner():\n' + '    pass\n' * 60
  long = (
    '@decorated\ndef outer():\n' + inner + '\nclass C:\n  def method(self):\n' + '    pass\n' * 60
  )
  found = files({'base/a.py': long, 'base/b.py': '\n' * 401, 'errors.py': '\n' * 400})
  assert measure_rooms.long_files(found) == [('gdistill/base/b.py', 401)]
  assert measure_rooms.long_functions(found) == [
    ('gdistill/base/a.py:2 outer', 62), ('gdistill/base/a.py:66 method', 61),
  ]  # fmt: skip
  assert not measure_rooms.long_functions(files({'base/a.py': 'def f():\n' + '  pass\n' * 59}))


def test_loose_files_are_those_outside_all_folders(files):
  names = ['gdistill/__init__.py', 'gdistill/errors.py', 'gdistill/main.py']
  assert measure_rooms.loose_files(files()) == names


def test_private_names_of_other_files_are_found(files):
  text = """
from gdistill import errors
from gdistill.base.b import _hidden, shown
import numpy as np
errors._secret, errors.__name__, np._private, self._own
"""
  found = measure_rooms.private_names(files({'base/a.py': text}))
  assert sorted(found) == ['gdistill/base/a.py:3 gdistill.base.b._hidden',
                           'gdistill/base/a.py:5 errors._secret']  # fmt: skip


def test_the_init_of_a_room_is_a_docstring_alone(files):
  assert not measure_rooms.docstring_faults(files())
  changes = {
    'base/__init__.py': '"""Two\nlines."""\n',
    'top/__init__.py': TREE['top/__init__.py'] + 'import os\n',
  }
  assert measure_rooms.docstring_faults(files(changes)) == [
    'gdistill/base/__init__.py: 2 lines, not 3 to 8',
    'gdistill/top/__init__.py holds more than a docstring',
  ]
  assert measure_rooms.docstring_faults(files({'base/__init__.py': ''})) == [
    'gdistill/base/__init__.py has no docstring',
  ]


def test_a_recipe_is_a_value_and_not_the_module_of_that_name(files):
  handed = """
from gdistill.base import a
def run(recipe, folder):
  own(recipe), a.run(recipe.seed), print(recipe)
  a.run(folder, recipe), a.run(settings=recipe)
"""
  changes = {
    'top/command.py': handed,
    'base/a.py': 'from gdistill import recipe\nrecipe.Recipe\n',
    'base/b.py': 'def seed(run):\n  return run.recipe.seed\n',
  }
  found = {f.path: f for f in files(changes)}
  known = [path for path, f in found.items() if measure_rooms.knows_recipe(f)]
  assert known == ['gdistill/base/b.py', 'gdistill/top/command.py']
  assert measure_rooms.recipes_handed_on(found['gdistill/top/command.py']) == [
    'gdistill/top/command.py:5 a.run', 'gdistill/top/command.py:5 a.run',
  ]  # fmt: skip


def test_the_script_prints_a_table_or_json(files, tmp_path):
  files()
  (tmp_path / 'tests/house').mkdir(parents=True)
  (tmp_path / 'tests/house/test_layers.py').write_text(
    "ALLOWED = {'errors': set(), 'base': set()}\n"
  )
  script = [sys.executable, str(measure_rooms.ROOT / 'docs/measure_rooms.py'), str(tmp_path)]
  text = subprocess.run(script, capture_output=True, text=True, check=True).stdout
  lines = [' '.join(line.split()) for line in text.splitlines()]
  assert 'import depth in files 5' in lines and 'floors of rooms 4' in lines
  assert 'lines of the longest file 4 gdistill/base/__init__.py' in lines
  text = subprocess.run([*script, '--json'], capture_output=True, text=True, check=True).stdout
  assert json.loads(text)['rooms without a row in ALLOWED'] == ['main', 'top']
  script[-1] = str(tmp_path / 'tests')
  failed = subprocess.run(script, capture_output=True, text=True)
  assert failed.returncode == 1 and 'name the root of a checkout' in failed.stderr
