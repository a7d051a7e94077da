"""Who may import whom, read from the imports; and what may not be written anywhere."""

import ast

import measure_rooms
import pytest

from gdistill import errors

ROOT = measure_rooms.ROOT
FILES = measure_rooms.read()
# Every room, from the ground up, and the other rooms that it may import.
ALLOWED = {
  'errors': set(),
  'core': set(),
  'recipe': {'errors'},
  'devices': {'errors'},
  'models': {'core', 'errors'},
  'samplers': {'core'},
  'stages': {'core'},
  'workdir': {'devices', 'errors'},
  'convert': {'core', 'errors', 'models', 'recipe'},
  'data': {'core', 'errors', 'recipe', 'workdir'},
  'process': {'errors', 'workdir'},
  'rounds': {'core', 'errors', 'models', 'recipe', 'workdir'},
  'frozen': {
    'convert', 'core', 'data', 'devices', 'errors', 'process', 'recipe', 'rounds', 'workdir',
  },
  'drawing': {
    'core', 'devices', 'errors', 'frozen', 'process', 'recipe', 'rounds', 'samplers', 'workdir',
  },
  'training': {
    'core', 'data', 'devices', 'errors', 'frozen', 'process', 'recipe', 'rounds', 'stages',
    'workdir',
  },
  'evaluation': {
    'core', 'data', 'devices', 'drawing', 'errors', 'frozen', 'models', 'process', 'recipe',
    'rounds', 'training', 'workdir',
  },
  'published': {
    'convert', 'drawing', 'errors', 'frozen', 'models', 'process', 'recipe', 'rounds', 'training',
    'workdir',
  },
  'notebook': {'drawing', 'errors', 'evaluation', 'rounds', 'workdir'},
  'cli': {
    'convert', 'core', 'data', 'devices', 'drawing', 'errors', 'evaluation', 'frozen', 'models',
    'process', 'published', 'recipe', 'rounds', 'samplers', 'stages', 'training', 'workdir',
  },
  'main': {'cli'},
}  # fmt: skip
HEAVY = {'tensorflow_datasets', 'torch', 'matplotlib', 'sklearn', 'clu', 'tensorboardX', 'PIL'}


def imported(file):
  return [name for name, _ in measure_rooms.imports(file)]


def test_every_room_has_a_row_and_every_row_a_room():
  assert set(ALLOWED) == set(measure_rooms.rooms(FILES))


@pytest.mark.parametrize('file', FILES, ids=lambda f: f.path)
def test_rooms_import_only_what_their_row_allows(file):
  allowed = ALLOWED.get(file.room, set()) | {file.room}
  for name in imported(file):
    if name.split('.')[0] == 'gdistill':
      room = name.split('.')[1] if '.' in name else '__init__'
      assert room in allowed, f'{file.path} may not import {name}'


def test_rooms_form_no_circle():
  assert measure_rooms.circles(ALLOWED) == []
  assert measure_rooms.circles(measure_rooms.room_graph(FILES)) == []


def test_only_main_imports_the_command_line():
  assert [room for room, others in ALLOWED.items() if 'cli' in others] == ['main']


def test_nobody_uses_a_private_name_of_another_file():
  assert measure_rooms.private_names(FILES) == []


@pytest.mark.parametrize('file', [f for f in FILES if f.room == 'core'], ids=lambda f: f.path)
def test_core_needs_jax_alone(file):
  for name in imported(file):
    assert name.split('.')[0] in (
      'jax', 'numpy', 'gdistill', 'collections', 'dataclasses', 'functools', 'math',
    )  # fmt: skip


def test_heavy_libraries_load_with_the_file_that_needs_them_only():
  for file in FILES:
    for node in file.tree.body:
      if isinstance(node, (ast.Import, ast.ImportFrom)):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module]
        heavy = {n.split('.')[0] for n in names if n} & HEAVY
        # The report consists of plots and sheets of pictures: its files need both libraries.
        report = file.module.startswith('gdistill.evaluation.report.')
        assert not heavy or report, f'{file.path} imports {heavy} at the top'


def test_no_pickle_no_shell_no_eval():
  bad = {'eval', 'exec', 'compile_command'}
  others = [ROOT / 'setup.py', *(ROOT / 'configs').glob('*.py'), *(ROOT / 'docs').glob('*.py')]
  for file in [*FILES, *(measure_rooms.parse(path) for path in others)]:
    for name in imported(file):
      assert name.split('.')[0] not in ('pickle', 'dill', 'marshal', 'shelve'), file.path
    for node in ast.walk(file.tree):
      if not isinstance(node, ast.Call):
        continue
      name = ast.unparse(node.func)
      assert name not in bad | {'os.system', 'yaml.load'}, f'{file.path}: {name}'
      if name == 'torch.load':  # of a command that converts weights, and no code with them
        keywords = [ast.unparse(k) for k in node.keywords]
        assert file.room == 'convert' and 'weights_only=True' in keywords, file.path
      for keyword in node.keywords:
        value = ast.unparse(keyword.value)
        assert (keyword.arg, value) not in (('shell', 'True'), ('allow_pickle', 'True')), file.path
      if name in ('np.load', 'numpy.load'):
        assert any(k.arg == 'allow_pickle' for k in node.keywords), file.path


def test_what_others_say_is_told_in_one_short_line():
  assert errors.brief(ValueError('a\n  b')) == 'a b' and errors.brief(ValueError()) == 'ValueError'
  assert errors.brief(ValueError('x' * 300)) == 'x' * 300
  long = errors.brief(ValueError('begin' + 'x' * 10_000 + 'end'))
  assert long.startswith('begin') and long.endswith('end') and len(long) < 320
  assert str(errors.DataError('a\n  b')) == 'a b'
