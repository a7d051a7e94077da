"""The names of classes: compares lists of names, finds a class by its name, and knows ImageNet's.

A class has a number, its place in the list of names, and networks know only numbers. Two parts of a
run may hand a number to each other only if their lists have the same names in the same order.
"""

import collections
import functools
import pathlib
import re
import unicodedata
from collections.abc import Mapping, Sequence

from gdistill import errors

PAGE = 'see "Class names and a map of classes" in docs/data.md'
# WordNet's identifier of an ImageNet class at the start of a name, as in 'n01440764' or
# 'n01440764_tench'.
_WNID = re.compile(r'(n\d{8})(?![0-9A-Za-z])')
_NAME, _NUMBER = 'name:', 'number:'


@functools.cache
def imagenet() -> Mapping[str, str]:
  """Returns {WordNet's identifier: words} of ImageNet's 1,000 classes, in the order of labels."""
  text = pathlib.Path(__file__).with_name('imagenet_classes.txt').read_text(encoding='utf-8')
  rows = (line.partition(' ') for line in text.splitlines() if not line.startswith('#'))
  return {wnid: words for wnid, _, words in rows}


def words(name: str) -> str:
  """Returns ImageNet's words for a name such as 'n01440764', and any other name unchanged."""
  return imagenet().get(name, name) if _WNID.fullmatch(name) else name


def numbers_only(count: int) -> tuple[str, ...]:
  """Returns the names '0', '1', ... of `count` classes whose real names nobody knows."""
  return tuple(str(k) for k in range(count))


def listed(names: Sequence[str], most: int = 3) -> str:
  """Returns the first classes with their numbers, as in "0 'cat', 1 'dog' and 8 more"."""
  said = ', '.join(f'{k} {name}' for k, name in enumerate(told_apart(names)[:most]))
  more = len(names) - most
  return f'{said} and {more:,} more' if more > 0 else said


def told_apart(names: Sequence[str]) -> list[str]:
  r"""Returns the names for a message; names that look the same are also given in ASCII.

  Such names differ only in their Unicode form: '\xe9' and 'e\u0301' are both shown as 'é'.
  """
  forms = collections.Counter(map(_plain, set(names)))
  return [f'{_shown(n)} ({n!a})' if forms[_plain(n)] > 1 else _shown(n) for n in names]


def look_alikes(names: Sequence[str]) -> list[str]:
  """Returns those names that look like another of the names, as `told_apart` shows them."""
  forms = collections.Counter(map(_plain, set(names)))
  return told_apart([n for n in names if forms[_plain(n)] > 1])


def difference(a: Sequence[str], b: Sequence[str], whose: tuple[str, str]) -> str:
  """Returns '' if two lists of names have the same names in the same order, or else what differs.

  Two names are the same if they are equal, also in another Unicode form, or if they are names of
  one ImageNet class, such as 'n01440764', 'tench' and 'tench, Tinca tinca'. `whose` names the
  owners of `a` and `b` in the text, such as ('the data', 'the teacher').
  """
  first, second = whose
  odd, unclear = _odd(a, b)
  if not odd and len(a) == len(b):
    return ''
  found = []
  if len(a) != len(b):
    found.append(f'{first} has {len(a):,} classes and {second} {len(b):,}')
  for has, x, y in ((first, a, b), (second, b, a)):
    lost = _lost(x, y)
    if lost:
      more = f' and {len(lost) - 3:,} more' if lost[3:] else ''
      found.append(f'only {has} has {", ".join(map(_shown, lost[:3]))}{more}')
  if not found and unclear:
    found.append('several names mean one class of ImageNet, so which is which is unknown')
  elif not found:
    found.append('the names are the same, and their order is another')
  if odd:
    said = (f'{k} is {_shown(a[k])} in {first} and {_shown(b[k])} in {second}' for k in odd[:3])
    more = f' and {len(odd) - 3:,} more numbers differ' if odd[3:] else ''
    found.append(f'number {", number ".join(said)}{more}')
  return '; '.join(found)


def _odd(a: Sequence[str], b: Sequence[str]) -> tuple[list[int], bool]:
  """Returns (numbers whose names in `a` and `b` differ, whether only the meaning is unclear).

  A name that occurs in both lists means itself, and no other name of the same ImageNet class. If
  two numbers could be exchanged because their names mean one ImageNet class, both differ.
  """
  one, other = list(map(_plain, a)), list(map(_plain, b))
  rest = [k for k, (x, y) in enumerate(zip(one, other, strict=False)) if x != y]
  mine, theirs = _meanings(a), _meanings(b)
  in_a, in_b = {one[k] for k in rest}, {other[k] for k in rest}
  alike = [
    k for k in rest if one[k] not in in_b and other[k] not in in_a and mine[k] & theirs[k]
  ]  # fmt: skip
  meant = collections.defaultdict(list)
  for k in alike:
    for wnid in theirs[k]:
      meant[wnid].append(k)
  unclear = {
    k for k in alike for wnid in mine[k] for j in meant[wnid] if j != k and mine[j] & theirs[k]
  }
  differ = set(rest) - set(alike)
  return sorted(differ | unclear), not differ


def _meanings(names: Sequence[str]) -> list[frozenset[str]]:
  """Returns for each name the identifiers of the ImageNet classes that it can mean.

  Two classes of ImageNet are called 'crane'; in ImageNet's own order their identifiers are known.
  """
  found = list(map(_wnids, names))
  if len(names) != len(imagenet()):
    return found
  return [of & {wnid} or of for of, wnid in zip(found, imagenet(), strict=True)]


def _lost(a: Sequence[str], b: Sequence[str]) -> list[str]:
  """Returns the names in `a` that mean no class of `b`."""
  mine, theirs = (collections.Counter(map(_plain, names)) for names in (a, b))
  only, wnids = mine - theirs, set().union(*map(_wnids, theirs - mine))
  return [name for name in a if _plain(name) in only and not _wnids(name) & wnids]


def number(text: str, names: Sequence[str], flag: str, equals: str = '=') -> int | None:
  """Returns the number of the class that `text` means, or None if `text` means no class.

  - 'name:TEXT' is the class with this name, and 'number:3' the class with the number 3.
  - Any other text is the name of a class, or, if it consists of digits, the number of a class.

  A name may also be one of the names of an ImageNet class, as in `difference`. Raises ConfigError,
  which begins with `flag`, `equals` and `text`, if `text` can mean two classes.
  """
  found = set(_named(text, names))
  if text.startswith(_NAME):
    found |= set(_named(text.removeprefix(_NAME), names))
  digits = text.removeprefix(_NUMBER)
  # '03' is no number if a class has the name '03'; '3' is a number also if a class is called '3'.
  padded = digits == text and str(int(text)) != text if _is_number(digits) else True
  if _is_number(digits) and int(digits) < len(names) and not (padded and found):
    found.add(int(digits))
  if len(found) > 1:
    first = sorted(found)[:3]
    shown = told_apart([names[k] for k in first])
    ways = (f'{_NUMBER}{k} for number {k}, {s}' for k, s in zip(first, shown, strict=True))
    raise errors.ConfigError(
      f'{flag}{equals}{text} can mean more than one class: give {", or ".join(ways)}; {PAGE}'
    )
  return found.pop() if found else None


def place(name: str, names: Sequence[str]) -> int | None:
  """Returns the number of the class with exactly this name, or None; Unicode forms are equal."""
  return next((k for k, n in enumerate(names) if _plain(n) == _plain(name)), None)


def _named(text: str, names: Sequence[str]) -> list[int]:
  """Returns the numbers of the classes with the name `text`, or else with a name of its meaning."""
  plain = [k for k, name in enumerate(names) if _plain(name) == _plain(text)]
  if _is_number(text):  # '3' may be meant as the name '03'
    return plain or [k for k, n in enumerate(names) if _is_number(n) and int(n) == int(text)]
  if plain or not _wnids(text):
    return plain
  return [k for k, wnids in enumerate(_meanings(names)) if _wnids(text) & wnids]


def _is_number(text: str) -> bool:
  return text.isascii() and text.isdigit() and len(text) < 10


def _plain(name: str) -> str:
  return unicodedata.normalize('NFC', name)


def _shown(name: str) -> str:
  return repr(name if len(name) <= 40 else f'{name[:37]}...')


def _wnids(name: str) -> frozenset[str]:
  """Returns the identifiers of the ImageNet classes that `name` can mean; mostly none or one."""
  found = _WNID.match(name)
  if found:
    return frozenset([found.group(1)])
  return _synonyms().get(_words(name), frozenset())


@functools.cache
def _synonyms() -> Mapping[str, frozenset[str]]:
  """Returns {words of an ImageNet class, or one of the words: identifiers of the classes}."""
  out: dict[str, set[str]] = {}
  for wnid, words in imagenet().items():
    for form in (words, *words.split(',')):
      out.setdefault(_words(form), set()).add(wnid)
  return {form: frozenset(wnids) for form, wnids in out.items()}


def _words(name: str) -> str:
  return ' '.join(name.replace('_', ' ').lower().split())
