"""The classes of a finished round: their names in card.json, and the class that a text means."""

from collections.abc import Mapping, Sequence
from typing import Any

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


def compare(data: Sequence[str], card: Mapping[str, Any]) -> str:
  """Returns '' if classes of data have the numbers that the round with this card.json knows.

  `data` are the names of the data's classes. Returns a text that says what differs if the names or
  their order differ. A round that has numbers only is compared if the data's names are numbers too.
  Data whose names are their own numbers, such as '0000' and '0001', fit a published network with
  other names, because numbers are how such networks are published.
  """
  names, count = names_of(card), card['model']['num_classes']
  if not names:
    data = [str(int(n)) if n.isascii() and n.isdigit() else n for n in data]
    names = class_names.numbers_only(count)
    if len(data) == count and not all(n.isdigit() for n in data):
      return ''
  numbered = len(data) == count and all(n.isdecimal() and int(n) == k for k, n in enumerate(data))
  if numbered and card.get('imported') and not any(n.isdigit() for n in names):
    return ''
  return class_names.difference(data, names, ('the data', 'the round'))
