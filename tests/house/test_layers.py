"""Who may import whom, read from the imports; and what may not be written anywhere."""

import ast
import pathlib

import pytest

from gdistill import errors

ROOT = pathlib.Path(__file__).parents[2]
FILES = sorted((ROOT / 'gdistill').rglob('*.py'))
# Every room, and the rooms it may import beside itself. A room stands below those that import it.
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
  'drawing': {'core', 'devices', 'errors', 'frozen', 'process', 'rounds', 'samplers', 'workdir'},
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
  'main': {'cli'},
}  # fmt: skip
# Loose files that have no room yet.
LOOSE = {
  'parallel', 'storage', 'ledger', 'interrupt', 'watchdog', 'progress', 'apps', 'state',
  'checkpoints', 'train', 'pipeline', 'model', 'sampling', 'evaluate', 'grid', 'cells', 'samples',
  'show', 'encode', 'teachers', 'importing', 'exporting', 'editing', 'checks',
}  # fmt: skip
HEAVY = {'tensorflow_datasets', 'torch', 'matplotlib', 'sklearn', 'clu', 'tensorboardX', 'PIL'}


def imports(file):
  for node in ast.walk(ast.parse(file.read_text())):
    if isinstance(node, ast.ImportFrom) and node.module:
      if node.module == 'gdistill':
        yield from (f'gdistill.{a.name}' for a in node.names)
      else:
        yield node.module
    elif isinstance(node, ast.Import):
      yield from (a.name for a in node.names)


def layer(file):
  first = file.relative_to(ROOT / 'gdistill').parts[0]
  return first.removesuffix('.py')


@pytest.mark.parametrize('file', FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_rooms_import_only_what_lies_below_them(file):
  if layer(file) in LOOSE | {'cli', '__init__'}:
    return
  allowed = ALLOWED[layer(file)] | {layer(file)} | LOOSE
  for module in imports(file):
    if module.startswith('gdistill.'):
      assert module.split('.')[1] in allowed, f'{file} may not import {module}'


def test_nothing_imports_the_command_line():
  for file in FILES:
    if layer(file) not in ('cli', 'main'):
      assert not any(m.startswith('gdistill.cli') for m in imports(file)), file


@pytest.mark.parametrize('file', FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_core_needs_jax_alone(file):
  if layer(file) == 'core':
    for module in imports(file):
      assert module.split('.')[0] in (
        'jax', 'numpy', 'gdistill', 'collections', 'dataclasses', 'functools', 'math',
      )  # fmt: skip


def test_heavy_libraries_load_with_the_file_that_needs_them_only():
  for file in FILES:
    tree = ast.parse(file.read_text())
    for node in tree.body:
      if isinstance(node, (ast.Import, ast.ImportFrom)):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module]
        heavy = {n.split('.')[0] for n in names if n} & HEAVY
        assert not heavy or layer(file) == 'evaluation', f'{file} imports {heavy} at the top'


def test_no_pickle_no_shell_no_eval():
  bad = {'eval', 'exec', 'compile_command'}
  for file in [*FILES, ROOT / 'setup.py', *(ROOT / 'configs').glob('*.py')]:
    for module in imports(file):
      assert module.split('.')[0] not in ('pickle', 'dill', 'marshal', 'shelve'), file
    for node in ast.walk(ast.parse(file.read_text())):
      if not isinstance(node, ast.Call):
        continue
      name = ast.unparse(node.func)
      assert name not in bad | {'os.system', 'yaml.load'}, f'{file}: {name}'
      if name == 'torch.load':  # of a command that converts weights, and no code with them
        keywords = [ast.unparse(k) for k in node.keywords]
        assert layer(file) == 'convert' and 'weights_only=True' in keywords, file
      for keyword in node.keywords:
        value = ast.unparse(keyword.value)
        assert (keyword.arg, value) not in (('shell', 'True'), ('allow_pickle', 'True')), file
      if name in ('np.load', 'numpy.load'):
        assert any(k.arg == 'allow_pickle' for k in node.keywords), file


def test_what_others_say_is_told_in_one_short_line():
  assert errors.brief(ValueError('a\n  b')) == 'a b' and errors.brief(ValueError()) == 'ValueError'
  assert errors.brief(ValueError('x' * 300)) == 'x' * 300
  long = errors.brief(ValueError('begin' + 'x' * 10_000 + 'end'))
  assert long.startswith('begin') and long.endswith('end') and len(long) < 320
  assert str(errors.DataError('a\n  b')) == 'a b'
