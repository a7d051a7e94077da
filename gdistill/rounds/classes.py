"""The classes of a finished round: their names in card.json, and the class that a text means."""

from collections.abc import Mapping, Sequence
from typing import Any

from gdistill import errors
from gdistill.recipe import class_names

NO_CLASS = 'number:-1'  # another way to write the null condition as a label
# Kinds of published networks that were trained on ImageNet's classes, if they have 1,000.
_OF_IMAGENET = ('adm64', 'adm256', 'cin256', 'dit', 'sit')


def of_published(kind: str, count: int) -> tuple[str, ...]:
  """Returns the class names of a published network, or () if its files say only numbers."""
  words = tuple(class_names.imagenet().values())
  return words if kind in _OF_IMAGENET and count == len(words) else ()


def names_of(card: Mapping[str, Any]) -> tuple[str, ...]:
  """Returns the class names in card.json by number, or () if the round knows only numbers.

  An imported network without names has the numbers as names. Cards of imported networks that an
  older version wrote always have the numbers; they get the names of `of_published`.
  """
  names = tuple(map(str, card.get('class_names') or ()))
  about = card.get('imported')
  if isinstance(about, Mapping) and names == class_names.numbers_only(len(names)):
    return of_published(about.get('kind', ''), len(names))
  return names


def shown(card: Mapping[str, Any], numbers: Sequence[int], most: int = 10) -> str:
  """Returns classes in words for the user, such as "3 'cat', 5 'dog'"; -1 is 'no class'."""
  names = names_of(card)
  named = {k: repr(name) for k, name in enumerate(names)}
  said = ['no class' if k < 0 else f'{k} {named.get(k, "")}'.strip() for k in numbers[:most]]
  more = f' and {len(numbers) - most:,} more' if numbers[most:] else ''
  return ', '.join(said) + more


def summary(card: Mapping[str, Any]) -> str:
  """Returns one phrase on the classes of a round: how many there are, and the first names."""
  names, count = names_of(card), card['model']['num_classes']
  said = f'{count:,} class{"es" if count > 1 else ""}'
  return f'{said}: {class_names.listed(names)}' if names else f'{said} by number only, no names'


def number(card: Mapping[str, Any], text: str, flag: str) -> int | None:
  """Returns the number of the class of the round that `text` means, or None if there is none.

  class_names.number has the rule. Raises ConfigError, which begins with `flag`, if `text` can mean
  more than one class.
  """
  count = card['model']['num_classes']
  return class_names.number(text, names_of(card) or class_names.numbers_only(count), flag)


def compare(
  data: Sequence[str], card: Mapping[str, Any], where: str, kind: type[errors.GdistillError]
) -> str:
  """Checks that classes of data have the numbers that the round with this card.json knows.

  `data` are the names of the data's classes, and `where` names the round in the error line. Returns
  a note for the user if the round has numbers only, so that names cannot be compared, or else ''.
  Raises `kind` if the names or their order differ.
  """
  names, count = names_of(card), card['model']['num_classes']
  if not names:
    numbers = class_names.numbers_only(count)
    plain = [str(int(n)) if n.isascii() and n.isdigit() else n for n in data]
    if len(data) == count and not all(n.isdigit() for n in plain):
      return (
        f'{where} has {count:,} classes by number only, so their names cannot be compared: the '
        f'classes of the data get these numbers: {class_names.listed(data)}; if that is another '
        f'order, give data.classes=FILE; {class_names.PAGE}'
      )
    names, data = numbers, plain
  odd = class_names.difference(data, names, ('the data', 'the round'))
  if odd:
    raise kind(
      f'{where} has other classes than the data: {odd}; a label would teach another class. Give '
      'data with the same names in the same order, or a file data.classes=FILE with a line "name '
      f'of the data = name of the round" for each class; {class_names.PAGE}'
    )
  return ''
