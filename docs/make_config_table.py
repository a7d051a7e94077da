"""Writes docs/config.md: every key of a config, from gdistill/recipe/settings.py.

python docs/make_config_table.py
"""

import ast
import dataclasses
import inspect
import pathlib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence

import config_readers

from gdistill.recipe import identity
from gdistill.recipe import settings as recipes

PAGE = pathlib.Path(__file__).with_name('config.md')
HEAD = """# The keys of a config

This page lists every key of a config: its type, its default, its meaning, and who reads the key.
The page is made from `gdistill/recipe/settings.py`; do not edit the page, but repeat this command:

    python docs/make_config_table.py

A key is set in a config, such as `configs/digits.py`, or overridden on the command line:

    python -m gdistill.main --config=configs/digits.py --workdir=runs/digits \\
      --config.guidance.w_max=8.0 --config.model.multipliers="(1, 2)" --config.data.name=folder

Values are Python literals; anything else is a string.
A `~` at the beginning of a path, such as `data.path`, is the home directory.
Every workdir holds its resolved config, with all keys, as `config.json`.
An unknown key, a missing key or a value out of its limits ends the command with exit code 2.
`gdistill/recipe/checks.py` has the limits of all values.

| column | what it says |
|---|---|
| type | the type, or the only values that are allowed |
| default | the value if the config leaves the key out; "required": the config must have the key |
| may change | whether the key may change between two starts of a run in one workdir |
| read by | files of `gdistill/` that read the key, except `recipe/`, which checks every key |

A run with a changed key that may not change is refused with exit code 2.
A change of `mesh` or `train.remat` is allowed, and changes the last bits of the parameters.
"""
ABOUT_STAGES = """The sections `teacher`, `guidance` and `progressive` have all keys of this table.
`STAGE` stands for the name of the section: `teacher.steps`, `guidance.steps`, `progressive.steps`.
"""


@dataclasses.dataclass(frozen=True)
class Key:
  """A row of the page: a key of the class `section`, by its full name."""

  section: str
  name: str
  kind: str
  default: str
  meaning: str
  may_change: bool


def all_keys() -> list[Key]:
  """Returns all keys in the order of the page; ValueError names a key that has no meaning."""
  out = list(own_keys(recipes.Recipe, ''))
  shared = False
  for field in dataclasses.fields(recipes.Recipe):
    kind = field.type
    if not dataclasses.is_dataclass(kind):
      continue
    if issubclass(kind, recipes.Training) and not shared:
      out += own_keys(recipes.Training, 'STAGE.')
      shared = True
    out += own_keys(kind, f'{field.name}.')
  return out


def page(readers: Mapping[tuple[str, str], Sequence[str]]) -> str:
  """Returns the text of docs/config.md; `readers` are those of config_readers.readers()."""
  parts, section = [HEAD], ''
  for key in all_keys():
    if key.section != section:
      section = key.section
      kind = getattr(recipes, section)
      title = 'Top level' if kind is recipes.Recipe else key.name.partition('.')[0]
      title = 'The sections of the stages' if kind is recipes.Training else title
      text = ABOUT_STAGES if kind is recipes.Training else ''
      parts.append(f'\n## {title}\n\n{_joined(inspect.getdoc(kind))}\n{text}')
      parts.append('\n| key | type | default | meaning | may change | read by |\n')
      parts.append('|---|---|---|---|---|---|\n')
    files = ', '.join(f'`{file}`' for file in readers.get((key.section, _last(key.name)), ()))
    cells = (
      f'`{key.name}`', key.kind, key.default, key.meaning, 'yes' if key.may_change else 'no', files,
    )  # fmt: skip
    parts.append(f'| {" | ".join(cell.replace("|", "or") for cell in cells)} |\n')
  return ''.join(parts)


def own_keys(kind: type, prefix: str) -> Iterator[Key]:
  """Yields the keys that a section defines itself, without those of its base."""
  meanings = _meanings(kind)
  for field in dataclasses.fields(kind):
    if field.name not in vars(kind)['__annotations__'] or dataclasses.is_dataclass(field.type):
      continue
    if not meanings[field.name]:
      raise ValueError(f'{kind.__name__}.{field.name} has no comment above it in settings.py')
    required = field.default is dataclasses.MISSING
    default = 'required' if required else f'`{field.default!r}`'
    name, stage = prefix + field.name, prefix == 'STAGE.'
    names = [f'{s}.{field.name}' for s in recipes.STAGES] if stage else [name]
    changes = all(map(identity.may_change, names))
    yield Key(kind.__name__, name, _kind(field.type), default, meanings[field.name], changes)


def _meanings(kind: type) -> dict[str, str]:
  """Returns {key: the comment above it} of a class, '' for a key without a comment."""
  lines = inspect.getsource(kind).splitlines()
  out = {}
  for node in ast.parse('\n'.join(lines)).body[0].body:
    if isinstance(node, ast.AnnAssign):
      first = node.lineno - 1
      while lines[first - 1].lstrip().startswith('#'):
        first -= 1
      out[node.target.id] = _joined('\n'.join(lines[first : node.lineno - 1]).replace('# ', ''))
  return out


def _kind(hint: typing.Any) -> str:
  """Returns a type in words: `int`, `int` or None, tuple of `int`, or the values of a Literal."""
  origin, inside = typing.get_origin(hint), typing.get_args(hint)
  if origin is typing.Literal:
    return ', '.join(f'`{value!r}`' for value in inside)
  if origin is types.UnionType:
    return ' or '.join('None' if a is types.NoneType else _kind(a) for a in inside)
  return f'tuple of {_kind(inside[0])}' if origin is tuple else f'`{hint.__name__}`'


def _joined(text: str) -> str:
  return ' '.join(text.split())


def _last(name: str) -> str:
  return name.rpartition('.')[2]


if __name__ == '__main__':
  PAGE.write_text(page(config_readers.readers()))
