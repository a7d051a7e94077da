"""Finds which files of gdistill/ read which key of a config, from their source alone.

A value that may be the recipe or one of its sections is followed from annotations through
assignments, attributes, calls and returns, in all modules, until nothing new is found. A value is
('module', name), ('class', name), ('instance', name of its class), ('function', name), ('method',
name), which has its first argument already, or ('word', a string that names a key), for getattr. A
container counts as all of its elements.
"""
# ruff: noqa: N815  (ast.NodeVisitor finds methods by these names)

import ast
import collections
import dataclasses
import pathlib
from collections.abc import Iterable, Sequence

from gdistill.recipe import settings as recipes

ROOT = pathlib.Path(__file__).resolve().parents[1]
SECTIONS = {name: kind for name, kind in vars(recipes).items() if dataclasses.is_dataclass(kind)}
_WORDS = {field.name for kind in SECTIONS.values() for field in dataclasses.fields(kind)}
# Functions and methods of Python that return their arguments, or what a container holds.
_PASS_ON = {
  'copy.copy', 'dataclasses.replace', 'dict', 'enumerate', 'list', 'max', 'min', 'next', 'reversed',
  'sorted', 'tuple', 'zip',
}  # fmt: skip
_TAKE_OUT = {'get', 'items', 'pop', 'values'}
_PROPERTIES = {'property', 'functools.cached_property'}
_NOTHING: frozenset = frozenset()
_RECIPE = 'gdistill.recipe.'  # the sections are in files of this package

Values = Iterable[tuple[str, str]]


def readers(root: pathlib.Path = ROOT) -> dict[tuple[str, str], list[str]]:
  """Returns {(section, key): files}, such as {('Training', 'lr'): ['rounds/plan.py'], ...}.

  The section is the class that defines the key. The files lie in root/gdistill; recipe/ is left
  out, because it reads every key to check it.
  """
  program = _Program(root)
  program.search()
  return {key: sorted(files) for key, files in program.reads.items()}


def owners(section: str, key: str) -> list[str]:
  """Returns the sections that define `key`, for an instance of `section`: itself or its base.

  If neither does, its subclasses are meant: a value with the base as its annotation may be any.
  """
  kind = SECTIONS[section]
  below = [k for k in SECTIONS.values() if issubclass(k, kind)]
  for family in (kind.__mro__, below):
    found = [k.__name__ for k in family if key in vars(k).get('__annotations__', {})]
    if found:
      return found
  return []


class _Program:
  """All modules of the package, and the values that each name in each scope may have.

  A scope is the full name of a module, function or class; attributes are the names in a class.
  """

  def __init__(self, root: pathlib.Path):
    self.reads: dict[tuple[str, str], set[str]] = collections.defaultdict(set)
    self._values: dict[tuple[str, str], set] = {}
    self._nodes: dict[str, ast.AST] = {}  # of functions
    self._bases: dict[str, list[str]] = {}  # of classes
    self._modules: dict[str, tuple[str, ast.Module]] = {}
    for file in sorted((root / 'gdistill').rglob('*.py')):
      name = '.'.join(file.relative_to(root).with_suffix('').parts).removesuffix('.__init__')
      path = str(file.relative_to(root / 'gdistill'))
      self._modules[name] = path, ast.parse(file.read_text())

  def search(self) -> None:
    """Fills `reads`: evaluates all modules again and again until no value is new."""
    known = -1
    while known != (known := sum(map(len, self._values.values()))):
      for name, (path, tree) in self._modules.items():
        _Evaluation(self, path, (name,)).visit(tree)

  def bind(self, scope: str, name: str, values: Values = ()) -> None:
    self._values.setdefault((scope, name), set()).update(values)

  def lookup(self, scopes: Sequence[str], name: str) -> frozenset:
    """Returns the values of a name in the innermost scope that has it."""
    for scope in reversed(scopes):
      if (scope, name) in self._values:
        return frozenset(self._values[scope, name])
    return _NOTHING

  def define(self, name: str, node: ast.AST, bases: Values = ()) -> None:
    self._nodes[name] = node
    self._bases[name] = [base for _, base in bases]

  def attribute(self, values: Values, name: str, path: str) -> frozenset:
    """Returns the values of an attribute; notes that the file `path` reads a key of a section."""
    out = set()
    for kind, owner in values:
      if kind == 'module':
        inner = f'{owner}.{name}'
        out |= {('module', inner)} if inner in self._modules else self.lookup((owner,), name)
      elif kind in ('instance', 'class'):
        section = owner.removeprefix(_RECIPE).rpartition('.')[2] if _RECIPE in owner else ''
        if kind == 'instance' and section in SECTIONS and not path.startswith('recipe/'):
          for found in owners(section, name):
            self.reads[found, name].add(path)
        found = self.lookup((*reversed(self._bases.get(owner, [])), owner), name)
        out |= found if kind == 'class' else self._bound(found)
    return frozenset(out)

  def _bound(self, values: Values) -> set:
    """Returns the values as attributes of an instance: functions as methods, or what they return.

    A property is what it returns.
    """
    out = set()
    for kind, name in values:
      if kind != 'function':
        out.add((kind, name))
      elif _PROPERTIES & {ast.unparse(d) for d in self._nodes[name].decorator_list}:
        out |= self.lookup((name,), 'return')
      else:
        out.add(('method', name))
    return out

  def call(self, values: Values, given: Sequence[Values], named: dict[str, Values]) -> frozenset:
    """Returns what a call may return; its arguments become values of the parameters."""
    out = set()
    for kind, name in values:
      if kind == 'class':
        out.add(('instance', name))
        self._construct(name, given, named)
      elif kind in ('function', 'method'):
        args = self._nodes[name].args
        names = [a.arg for a in (*args.posonlyargs, *args.args)][kind == 'method' :]
        for parameter, found in zip(names, given, strict=False):
          self.bind(name, parameter, found)
        for parameter in {*names, *(a.arg for a in args.kwonlyargs)} & named.keys():
          self.bind(name, parameter, named[parameter])
        out |= self.lookup((name,), 'return')
    return frozenset(out)

  def _construct(self, name: str, given: Sequence[Values], named: dict[str, Values]) -> None:
    """Passes the arguments of a class on to its __init__, or to the fields of a dataclass."""
    starts = self.lookup((name,), '__init__')
    self.call([('method', start) for _, start in starts], given, named)
    if not starts and name in self._nodes:
      body = self._nodes[name].body
      fields = [s.target.id for s in body if isinstance(s, ast.AnnAssign)]
      for field, values in (*zip(fields, given, strict=False), *named.items()):
        self.bind(name, field, values)


class _Evaluation(ast.NodeVisitor):
  """One pass over a module or function: statements bind names, expressions return values."""

  def __init__(self, program: _Program, path: str, scopes: tuple[str, ...]):
    self._program, self._path, self._scopes = program, path, scopes

  def _inside(self, name: str) -> '_Evaluation':
    return _Evaluation(self._program, self._path, (*self._scopes, f'{self._scopes[-1]}.{name}'))

  def _all(self, nodes: Iterable[ast.AST | None]) -> frozenset:
    return _NOTHING.union(*(self.visit(node) for node in nodes if node is not None))

  def generic_visit(self, node: ast.AST) -> frozenset:
    self._all(ast.iter_child_nodes(node))
    return _NOTHING

  # ---- statements

  def visit_ImportFrom(self, node: ast.ImportFrom) -> frozenset:
    for alias in node.names:
      found = self._program.attribute([('module', node.module)], alias.name, self._path)
      self._program.bind(self._scopes[-1], alias.asname or alias.name, found)
    return _NOTHING

  def visit_ClassDef(self, node: ast.ClassDef) -> frozenset:
    inside = self._inside(node.name)
    name = inside._scopes[-1]
    self._program.bind(self._scopes[-1], node.name, {('class', name)})
    self._program.define(name, node, self._all(node.bases))
    for statement in node.body:
      inside.visit(statement)
      if isinstance(statement, ast.FunctionDef) and statement.args.args:
        self._program.bind(
          f'{name}.{statement.name}', statement.args.args[0].arg, {('instance', name)}
        )
    return _NOTHING

  def visit_FunctionDef(self, node: ast.FunctionDef) -> frozenset:
    inside, args = self._inside(node.name), node.args
    name = inside._scopes[-1]
    self._program.bind(self._scopes[-1], node.name, {('function', name)})
    self._program.define(name, node)
    for arg in (*args.posonlyargs, *args.args, *args.kwonlyargs, args.vararg, args.kwarg):
      if arg is not None:
        self._program.bind(name, arg.arg, self._annotated(arg.annotation))
    self._program.bind(name, 'return', self._annotated(node.returns))
    self._all((*node.decorator_list, *args.defaults, *args.kw_defaults))
    inside._all(node.body)
    return _NOTHING

  def visit_Return(self, node: ast.Return) -> frozenset:
    self._program.bind(self._scopes[-1], 'return', self._all([node.value]))
    return _NOTHING

  def visit_Assign(self, node: ast.Assign) -> frozenset:
    for target in node.targets:
      self._assign(target, node.value)
    return _NOTHING

  def visit_AnnAssign(self, node: ast.AnnAssign) -> frozenset:
    self._bind(node.target, self._annotated(node.annotation) | self._all([node.value]))
    return _NOTHING

  def visit_AugAssign(self, node: ast.AugAssign) -> frozenset:
    self._bind(node.target, self.visit(node.value))
    return self.visit(node.target)

  def visit_For(self, node: ast.For) -> frozenset:
    self._bind(node.target, self.visit(node.iter))
    self._all((*node.body, *node.orelse))
    return _NOTHING

  def visit_withitem(self, node: ast.withitem) -> frozenset:
    self._bind(node.optional_vars, self.visit(node.context_expr))
    return _NOTHING

  def _assign(self, target: ast.AST, value: ast.AST) -> None:
    pair = isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)
    if pair and len(target.elts) == len(value.elts):
      for one, its in zip(target.elts, value.elts, strict=True):
        self._assign(one, its)
    else:
      self._bind(target, self.visit(value))

  def _bind(self, target: ast.AST | None, values: Values) -> None:
    if isinstance(target, ast.Name):
      self._program.bind(self._scopes[-1], target.id, values)
    elif isinstance(target, ast.Attribute):
      for _, owner in self.visit(target.value):
        self._program.bind(owner, target.attr, values)
    elif isinstance(target, (ast.Starred, ast.Subscript)):
      self._bind(target.value, values)
    elif isinstance(target, (ast.Tuple, ast.List)):
      for one in target.elts:
        self._bind(one, values)

  def _annotated(self, node: ast.AST | None) -> frozenset:
    """Returns instances of the classes that an annotation names, also within list[...] and such."""
    if node is None:
      return _NOTHING
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
      node = ast.parse(node.value, mode='eval')
    names = [part for part in ast.walk(node) if isinstance(part, (ast.Name, ast.Attribute))]
    return frozenset(('instance', name) for kind, name in self._all(names) if kind == 'class')

  # ---- expressions

  def visit_Name(self, node: ast.Name) -> frozenset:
    return self._program.lookup(self._scopes, node.id)

  def visit_Constant(self, node: ast.Constant) -> frozenset:
    return frozenset({('word', node.value)}) if node.value in _WORDS else _NOTHING

  def visit_Attribute(self, node: ast.Attribute) -> frozenset:
    return self._program.attribute(self.visit(node.value), node.attr, self._path)

  def visit_NamedExpr(self, node: ast.NamedExpr) -> frozenset:
    self._bind(node.target, found := self.visit(node.value))
    return found

  def _parts(self, node: ast.AST) -> frozenset:
    return self._all(ast.iter_child_nodes(node))

  visit_BoolOp = visit_IfExp = visit_Starred = visit_Subscript = _parts
  visit_Dict = visit_List = visit_Set = visit_Tuple = _parts

  def _comprehension(self, node: ast.AST) -> frozenset:
    inside = self._inside(f'for{node.lineno}:{node.col_offset}')
    for part in node.generators:
      inside._bind(part.target, inside.visit(part.iter))
      inside._all(part.ifs)
    return inside._all([node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt])

  visit_ListComp = visit_SetComp = visit_GeneratorExp = visit_DictComp = _comprehension

  def visit_Lambda(self, node: ast.Lambda) -> frozenset:
    inside = self._inside(f'lambda{node.lineno}:{node.col_offset}')
    for arg in (*node.args.args, *node.args.kwonlyargs):
      self._program.bind(inside._scopes[-1], arg.arg)
    self._all((*node.args.defaults, *node.args.kw_defaults))
    inside.visit(node.body)
    return _NOTHING

  def visit_Call(self, node: ast.Call) -> frozenset:
    name, given = ast.unparse(node.func), [self.visit(a) for a in node.args]
    named = {k.arg: self.visit(k.value) for k in node.keywords}
    if name == 'getattr':
      words = [word for kind, word in given[1] if kind == 'word']
      return _NOTHING.union(*(self._program.attribute(given[0], w, self._path) for w in words))
    if name == 'functools.partial':
      self._program.call(given[0], given[1:], named)
      return _NOTHING
    found = self._program.call(self.visit(node.func), given, named)
    if name in _PASS_ON:
      found = found.union(*given)
    if isinstance(node.func, ast.Attribute) and node.func.attr in _TAKE_OUT:
      found |= self.visit(node.func.value)
    return found
