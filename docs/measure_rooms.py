"""Measures how gdistill/ is divided into files and rooms.

    python docs/measure_rooms.py [CHECKOUT] [--json]

- A room is a folder of gdistill/, or a file that lies loose in gdistill/ (main.py is room `main`).
- An import counts wherever it stands, also inside a function. `from gdistill.core import process`
  is an import of gdistill/core/process.py alone, not of gdistill/core/__init__.py. A module that is
  imported by a computed name, as the command line does with its subcommands, is not seen.
- A circle is a set of files (or rooms) each of which reaches all others through imports.
- The import depth is the number of files on the longest chain in which each file imports the next
  file. All files of a circle together count as one file of the chain.
- The number of floors is the same count for rooms: a room stands one floor above the highest room
  that it imports.
- A function is measured from its `def` line to its last line. A function inside a function counts
  as part of the outer function and is not listed.
- A file knows the whole recipe if a variable, a parameter or an attribute in it is called `recipe`.
  A recipe is handed on where such a value is an argument of a call to another file's function.
- A private name is a name with a leading underscore that one file takes from another.

Only the standard library is needed. The tests in tests/house/ use the same functions.
"""

import argparse
import ast
import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence, Set

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = 'gdistill'
LONGEST_FILE = 400  # lines
LONGEST_FUNCTION = 60  # lines
MOST_LOOSE = 4  # files in gdistill/ itself, __init__.py among them
LAYERS = ('tests/house/test_layers.py', 'tests/test_layers.py')  # where ALLOWED may be

Graph = Mapping[str, Set[str]]


@dataclasses.dataclass(frozen=True, eq=False)
class File:
  """A Python file of the package, parsed."""

  path: str  # from the checkout, as in 'gdistill/core/process.py'
  lines: int
  tree: ast.Module

  @property
  def module(self) -> str:
    """'gdistill.core.process'; 'gdistill.core' for gdistill/core/__init__.py."""
    parts = self.path.removesuffix('.py').split('/')
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)

  @property
  def room(self) -> str:
    """'core' for gdistill/core/process.py, 'main' for gdistill/main.py."""
    return self.path.split('/')[1].removesuffix('.py')


def read(checkout: pathlib.Path = ROOT) -> tuple[File, ...]:
  """Returns the files of gdistill/, sorted by path."""
  found = tuple(parse(path, checkout) for path in sorted((checkout / PACKAGE).rglob('*.py')))
  if not found:
    raise SystemExit(f'{checkout} has no {PACKAGE}/; name the root of a checkout')
  return found


def parse(path: pathlib.Path, checkout: pathlib.Path = ROOT) -> File:
  text, name = path.read_text(encoding='utf-8'), path.relative_to(checkout).as_posix()
  return File(name, len(text.splitlines()), ast.parse(text, name))


# ---- imports


def imports(file: File) -> Iterator[tuple[str, str]]:
  """Yields (what is imported, its name in the file): ('gdistill.core.process', 'process')."""
  for node in ast.walk(file.tree):
    if isinstance(node, ast.Import):
      for alias in node.names:
        yield alias.name, alias.asname or alias.name.split('.')[0]
    elif isinstance(node, ast.ImportFrom):
      base = [node.module] if node.module else []
      if node.level:
        up = node.level - file.path.endswith('__init__.py')
        parts = file.module.split('.')
        base = parts[: len(parts) - up] + base
      for alias in node.names:
        yield '.'.join([*base, alias.name]), alias.asname or alias.name


def file_graph(files: Sequence[File]) -> Graph:
  """Returns {module: the modules of gdistill that it imports}."""
  modules = {f.module for f in files}
  graph = {}
  for f in files:
    named = {_module(name, modules) for name, _ in imports(f)}
    graph[f.module] = frozenset(named - {'', f.module})
  return graph


def _module(name: str, modules: Set[str]) -> str:
  """Returns the module of an imported name, '' if the name is not from gdistill."""
  while name and name not in modules:
    name = name.rpartition('.')[0]
  return name


def room_graph(files: Sequence[File]) -> Graph:
  """Returns {room: the other rooms that it imports}."""
  room = {f.module: f.room for f in files}
  graph = {name: set() for name in rooms(files)}
  for module, others in file_graph(files).items():
    if room[module] in graph:
      graph[room[module]] |= {room[other] for other in others} - {room[module], '__init__'}
  return {name: frozenset(others) for name, others in graph.items()}


def rooms(files: Sequence[File]) -> tuple[str, ...]:
  return tuple(sorted({f.room for f in files} - {'__init__'}))


# ---- graphs


def reached(graph: Graph) -> Graph:
  """Returns {node: every node that a path from it leads to}."""
  out = {}
  for start in graph:
    seen, waiting = set(), list(graph[start])
    while waiting:
      node = waiting.pop()
      if node not in seen:
        seen.add(node)
        waiting.extend(graph[node])
    out[start] = frozenset(seen)
  return out


def circles(graph: Graph) -> list[tuple[str, ...]]:
  """Returns the sets of nodes that reach each other, each sorted."""
  reach = reached(graph)
  found = {frozenset({a} | {b for b in reach[a] if a in reach[b]}) for a in graph if a in reach[a]}
  return sorted(tuple(sorted(circle)) for circle in found)


def longest_chain(graph: Graph) -> list[tuple[str, ...]]:
  """Returns the longest path, from the node that nothing reaches down; a circle is one entry."""
  part = {node: (node,) for node in graph}
  part |= {node: circle for circle in circles(graph) for node in circle}

  @functools.cache
  def below(nodes):
    others = {part[b] for a in nodes for b in graph[a]} - {nodes}
    return (nodes, *max((below(o) for o in sorted(others)), key=len, default=()))

  return list(max((below(p) for p in sorted(set(part.values()))), key=len, default=()))


def floors(graph: Graph) -> dict[str, int]:
  """Returns {node: its floor}: 0 if it imports nothing; for a graph without circles."""

  @functools.cache
  def floor(node):
    return max((floor(other) + 1 for other in graph[node]), default=0)

  return {node: floor(node) for node in graph}


# ---- what the house rules ask


def loose_files(files: Sequence[File]) -> list[str]:
  return [f.path for f in files if f.path.count('/') == 1]


def long_files(files: Sequence[File], limit: int = LONGEST_FILE) -> list[tuple[str, int]]:
  """Returns (path, lines) of the files over `limit` lines, the longest first."""
  return sorted(((f.path, f.lines) for f in files if f.lines > limit), key=lambda a: -a[1])


def long_functions(files: Sequence[File], limit: int = LONGEST_FUNCTION) -> list[tuple[str, int]]:
  """Returns ('path:line name', lines) of the functions over `limit` lines, the longest first."""
  found = []
  for f in files:
    for node in functions(f.tree):
      lines = node.end_lineno - node.lineno + 1
      if lines > limit:
        found.append((f'{f.path}:{node.lineno} {node.name}', lines))
  return sorted(found, key=lambda a: (-a[1], a[0]))


def functions(node: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
  """Yields the functions and methods below a node, but not the functions inside a function."""
  for child in ast.iter_child_nodes(node):
    if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
      yield child
    else:
      yield from functions(child)


def private_names(files: Sequence[File]) -> list[str]:
  """Returns 'path:line alias._name' wherever a file takes a `_name` of another file."""
  modules, found = {f.module for f in files}, []
  for f in files:
    ours = {alias for name, alias in imports(f) if name in modules}
    for node in ast.walk(f.tree):
      if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        if node.value.id in ours and _private(node.attr):
          found.append(f'{f.path}:{node.lineno} {node.value.id}.{node.attr}')
      elif isinstance(node, ast.ImportFrom):
        inside = node.level or (node.module or '').split('.')[0] == PACKAGE
        names = [a.name for a in node.names if inside and _private(a.name)]
        found.extend(f'{f.path}:{node.lineno} {node.module or "."}.{name}' for name in names)
  return found


def _private(name: str) -> bool:
  return name.startswith('_') and not name.endswith('__')


def docstring_faults(files: Sequence[File], low: int = 3, high: int = 8) -> list[str]:
  """Returns what is wrong with each folder's __init__.py, which is a docstring of 3 to 8 lines."""
  found = []
  for f in files:
    if not f.path.endswith('__init__.py') or f.room == '__init__':
      continue
    text = ast.get_docstring(f.tree)
    if text is None:
      found.append(f'{f.path} has no docstring')
    elif len(f.tree.body) > 1:
      found.append(f'{f.path} holds more than a docstring')
    elif not low <= len(text.splitlines()) <= high:
      found.append(f'{f.path}: {len(text.splitlines())} lines, not {low} to {high}')
  return found


def knows_recipe(file: File) -> bool:
  """Whether a variable, a parameter or an attribute of the file is called `recipe`."""
  modules = {alias for _, alias in imports(file)}
  for node in ast.walk(file.tree):
    if isinstance(node, ast.arg) and node.arg == 'recipe':
      return True
    if isinstance(node, ast.expr) and _is_recipe(node, modules):
      return True
  return False


def recipes_handed_on(file: File) -> list[str]:
  """Returns 'path:line function' of the calls that give another file's function a whole recipe."""
  modules = {alias for _, alias in imports(file)}
  ours = {alias for name, alias in imports(file) if name.split('.')[0] == PACKAGE}
  found = []
  for node in ast.walk(file.tree):
    if isinstance(node, ast.Call):
      name = ast.unparse(node.func)
      given = [*node.args, *(k.value for k in node.keywords)]
      if name.split('.')[0] in ours and any(_is_recipe(a, modules) for a in given):
        found.append((node.lineno, name))
  return [f'{file.path}:{line} {name}' for line, name in sorted(found)]


def _is_recipe(node: ast.expr, modules: Set[str]) -> bool:
  if isinstance(node, ast.Name):
    return node.id == 'recipe' and 'recipe' not in modules
  if isinstance(node, ast.Attribute):
    return node.attr == 'recipe' and ast.unparse(node.value) != PACKAGE
  return False


def layers(checkout: pathlib.Path = ROOT) -> dict[str, ast.expr]:
  """Returns the rows of ALLOWED in the test of the layers: {room: the row's value, unevaluated}."""
  for name in LAYERS:
    if (checkout / name).is_file():
      for node in ast.parse((checkout / name).read_text(encoding='utf-8')).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == 'ALLOWED':
          keys = [ast.literal_eval(key) for key in node.value.keys]
          return dict(zip(keys, node.value.values, strict=True))
  return {}


# ---- the table


def measure(checkout: pathlib.Path = ROOT) -> dict:
  """Returns every measurement of a checkout, ready for JSON."""
  files = read(checkout)
  by_file, by_room = file_graph(files), room_graph(files)
  longest = max(files, key=lambda f: f.lines)
  return {
    'python files': len(files),
    'lines': sum(f.lines for f in files),
    'rooms': list(rooms(files)),
    'loose files in gdistill/': loose_files(files),
    'lines of the longest file': (longest.lines, longest.path),
    f'files over {LONGEST_FILE} lines': long_files(files),
    f'functions over {LONGEST_FUNCTION} lines': long_functions(files),
    'import depth in files': [' = '.join(nodes) for nodes in longest_chain(by_file)],
    'floors of rooms': [' = '.join(nodes) for nodes in longest_chain(by_room)],
    'circles between rooms': circles(by_room),
    'circles between files': circles(by_file),
    'rooms without a row in ALLOWED': sorted(set(by_room) - set(layers(checkout))),
    'files that know the whole recipe': [f.path for f in files if knows_recipe(f)],
    'calls that hand a whole recipe on': [c for f in files for c in recipes_handed_on(f)],
    'private names of other files': private_names(files),
    'faulty __init__.py of rooms': docstring_faults(files),
  }


def table(found: Mapping) -> str:
  """Returns the measurements as a table of numbers, then the lists behind the numbers."""
  lines, more = [], []
  for name, value in found.items():
    number = len(value) if isinstance(value, list) else value
    note = ''
    if isinstance(value, tuple):
      number, note = value
    lines.append(f'{name:36}{number:>8,}  {note}'.rstrip())
    if isinstance(value, list) and value:
      more += ['', f'{name}:']
      more += [f'  {_line(entry)}' for entry in value]
  return '\n'.join([*lines, *more])


def _line(entry) -> str:
  if isinstance(entry, tuple):
    last = f' {entry[-1]}' if isinstance(entry[-1], int) else f', {entry[-1]}'
    return ', '.join(map(str, entry[:-1])) + last
  return str(entry)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('checkout', nargs='?', type=pathlib.Path, default=ROOT)
  parser.add_argument('--json', action='store_true', help='print JSON instead of the table')
  args = parser.parse_args()
  found = measure(args.checkout)
  print(json.dumps(found, indent=2) if args.json else table(found))


if __name__ == '__main__':
  main()
