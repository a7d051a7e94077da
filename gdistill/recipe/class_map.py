"""Reads `data.classes`, a file that says which class of the teacher each class of the data is."""

import json
from collections.abc import Iterator, Sequence

from gdistill import errors
from gdistill.recipe import class_names

_LARGEST = 2**24  # largest size of a map in bytes


def read(file: str) -> list[tuple[str, str]]:
  """Returns the pairs (name in the data, name or number in the teacher) of the map in `file`.

  The file is a JSON object, or text with a line `name of the data = name of the teacher` for each
  class; empty lines and lines that begin with # say nothing. Raises ConfigError, which names the
  line, if the file cannot be read as a map.
  """
  where = f'data.classes={file}'
  try:
    with open(file, 'rb') as f:
      data = f.read(_LARGEST + 1)
  except (OSError, ValueError) as e:  # a path with a null character is a ValueError
    raise errors.ConfigError(
      f'{where} cannot be read: {getattr(e, "strerror", e)}; give the path of a file with a line '
      f'"name of the data = name of the teacher" for each class; {class_names.PAGE}'
    ) from e
  if len(data) > _LARGEST:
    raise errors.ConfigError(f'{where} is larger than {_LARGEST:,} bytes, so it is no map of names')
  try:
    text = data.decode('utf-8-sig')
  except UnicodeDecodeError as e:
    raise errors.ConfigError(f'{where} is not UTF-8 text; save the file as UTF-8') from e
  pairs = list(_json(where, text) if text.lstrip()[:1] in ('{', '[') else _lines(where, text))
  if not pairs:
    raise errors.ConfigError(
      f'{where} names no class; write a line "name of the data = name of the teacher" for each '
      f'class; {class_names.PAGE}'
    )
  return pairs


def _json(where: str, text: str) -> Iterator[tuple[str, str]]:
  try:
    found = json.loads(text, object_pairs_hook=_Pairs)
  except (ValueError, RecursionError) as e:
    raise errors.ConfigError(
      f'{where} begins like JSON and is none ({errors.brief(e)}); correct the file, or write text '
      'lines "name of the data = name of the teacher"'
    ) from e
  if not isinstance(found, _Pairs):
    raise errors.ConfigError(
      f'{where} must hold a JSON object {{"name of the data": "name of the teacher"}}, and holds a '
      'list'
    )
  for name, wanted in found:
    if isinstance(wanted, bool) or not isinstance(wanted, (str, int)):
      shown = 'an object' if isinstance(wanted, _Pairs) else repr(wanted)[:40]
      raise errors.ConfigError(
        f'{where}: {name!r} stands for {shown}; give the name or the number of a class of the '
        'teacher'
      )
    yield name, wanted if isinstance(wanted, str) else f'number:{wanted}'


class _Pairs(list):
  """The pairs of a JSON object in their order, so that a name that occurs twice is seen."""


def _lines(where: str, text: str) -> Iterator[tuple[str, str]]:
  """Yields the pair of every line; `=` with spaces around it divides a line with several `=`."""
  lines = text.replace('\r\n', '\n').replace('\r', '\n').split('\n')
  for number, line in enumerate(lines, 1):
    if not line.strip() or line.lstrip().startswith('#'):
      continue
    parts = line.split(' = ') if line.count(' = ') else line.split('=')
    name, wanted = (parts[0].strip(), parts[-1].strip())
    if len(parts) != 2 or not name or not wanted:
      raise errors.ConfigError(
        f'{where}, line {number}: {line.strip()[:80]!r} must be "name of the data = name of the '
        'teacher", with one = between two names; names with =, or with # in front, need JSON'
      )
    yield name, wanted


def numbers(file: str, data: Sequence[str], teacher: Sequence[str], count: int) -> list[int]:
  """Returns for each class of the data the number of the teacher's class that the map says.

  `data` are the names of the data's classes and `teacher` those of the teacher's, or () for a
  teacher that knows only numbers; `count` is how many classes the teacher has. Raises ConfigError
  unless the map names each class of the data once, and each class of the teacher once.
  """
  where, out, names = f'data.classes={file}', {}, teacher or class_names.numbers_only(count)
  for name, wanted in read(file):
    k = class_names.place(name, data)
    if k is None:
      raise errors.ConfigError(
        f'{where}: {name!r} is no class of the data, whose classes are '
        f'{class_names.listed(data)}; correct the name'
      )
    if k in out:
      raise errors.ConfigError(f'{where} names the class {name!r} of the data twice; remove a line')
    found = class_names.number(wanted, names, f'{where}: {name}', ' = ')
    if found is None:
      have = class_names.listed(teacher) if teacher else f'the numbers 0 to {count - 1}'
      raise errors.ConfigError(
        f'{where}: {wanted!r}, for {name!r} of the data, is no class of the teacher, which has '
        f'{have}; correct the name'
      )
    if found in out.values():
      other = next(data[i] for i, value in out.items() if value == found)
      raise errors.ConfigError(
        f'{where} makes both {other!r} and {name!r} of the data the class {wanted!r} of the '
        'teacher; give each class of the data its own class, or put the pictures of both into one '
        'folder'
      )
    out[k] = found
  _check_complete(where, [n for k, n in enumerate(data) if k not in out],
                  [n for k, n in enumerate(names) if k not in out.values()])  # fmt: skip
  return [out[k] for k in range(len(data))]


def _check_complete(where: str, data: Sequence[str], teacher: Sequence[str]) -> None:
  """Raises ConfigError if the map left out the classes `data`, or the classes `teacher`."""
  for lost, whose, remedy in (
    (data, 'data', f'add a line "{"".join(data[:1])} = name of the teacher"'),
    (teacher, 'teacher', 'students learn every class, so the data need pictures of each'),
  ):
    if lost:
      if lost is data and lost[0].startswith('#'):
        remedy = 'a line that begins with # is a comment, so write the map as a JSON file'
      more = f' and {len(lost) - 1:,} more' if lost[1:] else ''
      raise errors.ConfigError(
        f'{where} has no line for the class {lost[0]!r}{more} of the {whose}; {remedy}'
      )
