"""Tests of the notebooks: they define nothing, and run to their last cell on the digits."""

import ast
import json
import pathlib
import re

import micro
import pytest

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / 'notebooks').glob('*.ipynb'))


def test_there_are_three():
  assert [n.stem for n in NOTEBOOKS] == ['distill_digits', 'edit', 'evaluate']


@pytest.mark.parametrize('file', NOTEBOOKS, ids=lambda f: f.stem)
def test_they_call_the_package_define_nothing_and_hold_no_outputs(file):
  cells = [c for c in json.loads(file.read_text())['cells'] if c['cell_type'] == 'code']
  for cell in cells:
    assert not cell['outputs'] and cell['execution_count'] is None
    tree = ast.parse(re.sub(r'^(\s*)%.*', r'\1pass', ''.join(cell['source']), flags=re.MULTILINE))
    defined = (ast.FunctionDef, ast.ClassDef, ast.Lambda, ast.AsyncFunctionDef)
    assert not any(isinstance(node, defined) for node in ast.walk(tree))


@pytest.mark.full
def test_they_run_to_the_end(tmp_path, monkeypatch):
  nbclient, nbformat = pytest.importorskip('nbclient'), pytest.importorskip('nbformat')
  (tmp_path / 'config.json').write_text(json.dumps(micro.config()))
  monkeypatch.setenv('GDISTILL_NOTEBOOK_CONFIG', str(tmp_path / 'config.json'))
  monkeypatch.setenv('GDISTILL_NOTEBOOK_WORKDIR', str(tmp_path / 'run'))
  pictures = {'distill_digits': 2, 'evaluate': 0, 'edit': 3}
  for name, count in pictures.items():  # the later notebooks read the run of the first
    book = nbformat.read(ROOT / 'notebooks' / f'{name}.ipynb', as_version=4)
    client = nbclient.NotebookClient(
      book, timeout=150, kernel_name='python3', resources={'metadata': {'path': str(ROOT)}}
    )
    try:
      client.execute()
    except nbclient.exceptions.CellTimeoutError:  # a finished cell without its reply, seen once
      client.execute()
    results = [
      o['data'] for c in book.cells for o in c.get('outputs', ()) if o['output_type'] != 'stream'
    ]
    assert sum('image/png' in r for r in results) >= count
    dial = 'application/vnd.jupyter.widget-view+json'
    assert any(dial in r for r in results) == (name != 'edit')
    if name == 'evaluate':
      table = next(r['text/markdown'] for r in results if 'text/markdown' in r)
      assert '| student, DDIM | 1 |' in table
  assert (tmp_path / 'run' / 'report' / 'index.html').exists()
