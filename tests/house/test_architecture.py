"""docs/architecture.md and docs/rooms.svg say what the code says."""

import ast
import re
import xml.etree.ElementTree as ET

import draw_rooms
import measure_rooms
import pytest

ROOT = measure_rooms.ROOT
FILES = measure_rooms.read()
PAGE = draw_rooms.PAGE.read_text()
REMEDY = 'run python docs/draw_rooms.py'


def test_the_picture_is_drawn_from_the_imports():
  assert draw_rooms.PICTURE.read_text() == draw_rooms.picture(FILES), REMEDY


def test_the_table_is_made_from_the_docstrings_and_the_layers():
  table = draw_rooms.table(FILES, measure_rooms.layers())
  assert draw_rooms.with_table(PAGE, table) == PAGE, REMEDY


def test_the_picture_is_small_and_no_box_leaves_it_or_covers_another():
  text = draw_rooms.picture(FILES)
  assert len(text.encode()) < 60_000
  boxes = [
    tuple(float(e.get(k)) for k in ('x', 'y', 'width', 'height'))
    for e in ET.fromstring(text)  # noqa: S314 - our own picture
    if e.tag.endswith('rect') and e.get('width') == str(draw_rooms.BOX)
  ]
  assert len(boxes) == len(measure_rooms.rooms(FILES))
  for i, (x, y, width, height) in enumerate(boxes):
    assert x > 0 and x + width < draw_rooms.WIDTH
    for a, b, _, _ in boxes[:i]:
      assert abs(x - a) > width or abs(y - b) > height
  words = [line for _, *lines in draw_rooms.CAPTIONS.values() for line in lines]
  assert max(map(len, words)) <= 25, 'a longer line leaves its box'


GRAPH = {
  'cli': {'work', 'ground', 'tool'},
  'work': {'tool'},
  'tool': {'ground'},
  'other': {'ground'},
  'ground': set(),
}


def test_imports_that_follow_from_others_are_left_out():
  found = draw_rooms.reduced(GRAPH)
  assert found == {
    'cli': ['work'], 'work': ['tool'], 'tool': ['ground'], 'other': ['ground'], 'ground': [],
  }  # fmt: skip


def test_a_line_over_several_floors_passes_through_a_point_on_each():
  graph = {'top': {'middle', 'side'}, 'middle': {'ground'}, 'side': set(), 'ground': set()}
  chains = draw_rooms.chains(graph)
  node = draw_rooms.Node
  assert [node(2, 'top'), node(1, 'top', 'side'), node(0, 'side')] in chains
  assert len(chains) == 3


def test_lines_that_need_not_cross_are_parallel():
  graph = {'a': {'x'}, 'b': {'y'}, 'c': {'z'}, 'x': set(), 'y': set(), 'z': set()}
  (ground, roof), links = draw_rooms.arranged(graph)
  assert [min(graph[node.room]) for node in roof] == [node.room for node in ground]
  x = draw_rooms.positions([ground, roof], links)
  assert all(x[a] == x[b] for pairs in links for a, b in pairs)


def test_links_of_the_page_lead_somewhere():
  targets = re.findall(r'\]\(([^)]+)\)', PAGE)
  assert [t for t in targets if not (ROOT / 'docs' / t).exists()] == []


def test_names_of_the_page_are_defined_in_the_files_it_names():
  named = re.findall(r'`(\w+)` in \[[^]]+\]\(\.\./(gdistill/[^)]+\.py)\)', PAGE)
  assert len(named) > 20
  assert [(path, name) for name, path in named if name not in defined(path)] == []


def defined(path):
  """Returns the names of the functions, classes and constants of a file, if it exists."""
  if not (ROOT / path).exists():
    return set()
  names = set()
  for node in measure_rooms.parse(ROOT / path).tree.body:
    names |= {getattr(node, 'name', ''), *map(ast.unparse, getattr(node, 'targets', []))}
  return names


BLOCKS = re.findall(r'```python\n(.*?)```', PAGE, re.DOTALL)
SIGNATURES = [
  (path, part)
  for block in BLOCKS
  for path, part in re.findall(r'# (gdistill/\S+\.py)\n(.*?)(?=# gdistill/|\Z)', block, re.DOTALL)
]


def signatures(body, prefix=''):
  """Returns {'name' or 'Class.name': the parameters' names} of functions and methods."""
  found = {}
  for node in body:
    if isinstance(node, ast.ClassDef):
      found |= signatures(node.body, f'{node.name}.')
    elif isinstance(node, ast.FunctionDef):
      args = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
      found[prefix + node.name] = [a.arg for a in args]
  return found


@pytest.mark.parametrize(('path', 'text'), SIGNATURES, ids=[path for path, _ in SIGNATURES])
def test_signatures_of_the_page_are_those_of_the_code(path, text):
  said = signatures(ast.parse(text).body)
  found = signatures(measure_rooms.parse(ROOT / path).tree.body)
  assert said and said == {name: found.get(name) for name in said}


def test_the_readme_names_every_room():
  readme = (ROOT / 'README.md').read_text()
  for file in FILES:
    if file.room != '__init__':
      folder = file.path.count('/') > 1
      name = f'`gdistill/{file.room}/`' if folder else f'`{file.path}`'
      assert name in readme, name
