"""Reads captions from text files and tables; a caption is a whole text, written on one line."""

import csv
import dataclasses
import json
import os
import re
from collections.abc import Iterator
from typing import Any, TextIO

from gdistill import errors

TABLES = ('metadata.jsonl', 'metadata.csv', 'captions.csv')
# Byte-order marks and spaces before the words of a line, and spaces after the words.
_AROUND = re.compile(r'^[\s\ufeff]+|\s+$')


def one_line(text: str) -> str:
  """Returns the caption in `text`: the whole text, with one space in the place of each line end."""
  return ' '.join(_lines(text))


def _lines(text: str) -> list[str]:
  """Returns the lines of `text` that are not blank, without byte-order marks and outer spaces.

  Only line feeds and carriage returns end a line, as in a text file; other marks, such as U+000B or
  U+2028, stay in the line. A lone half of a surrogate pair, which JSON may hold, becomes '?'.
  """
  lines = (_AROUND.sub('', line) for line in re.split(r'[\r\n]+', text))
  return [line.encode('utf-8', 'replace').decode() for line in lines if line]


@dataclasses.dataclass(eq=False)
class Tally:
  """Counts captions of several lines, and captions of which earlier versions read only a part."""

  captions: int = 0
  several: int = 0
  first: str = ''  # name of the first caption of several lines
  cut: int = 0
  first_cut: str = ''  # name of the first caption of which earlier versions read only a part

  def caption(self, text: str, name: str) -> str:
    """Returns the caption in `text` and counts this caption; `name` is its name in messages."""
    lines = _lines(text)
    self.captions += bool(lines)
    if len(lines) > 1:
      self.several += 1
      self.first = self.first or name
    words = ' '.join(lines)
    # Earlier versions read only the first line, and took more marks than line ends for line ends.
    before = next(filter(None, map(str.strip, text.splitlines())), '')
    if before.encode('utf-8', 'replace').decode() != words:
      self.cut += 1
      self.first_cut = self.first_cut or name
    return words

  def notes(self, where: str) -> tuple[str, ...]:
    """Returns a message for the user about captions of several lines, or () if there are none."""
    if not self.several:
      return ()
    return (
      f'{where}: {self.several:,} of {self.captions:,} captions have several lines, and all lines '
      f'of a text are read as one caption (the first is {self.first!r})',
    )

  @property
  def changed(self) -> str:
    """The part of an error line that says which captions earlier versions read otherwise, or ''."""
    if not self.cut:
      return ''
    return (
      f'earlier versions of gdistill read only the first line of a caption, and {self.cut:,} '
      f'captions are longer (the first is {self.first_cut!r})'
    )


def decoded(data: bytes) -> str:
  """Returns the text in the bytes of a caption's file; raises ValueError if `data` is not UTF-8."""
  text = data.decode('utf-8-sig')
  if '\0' in text:
    raise ValueError('the text holds null characters, as UTF-16 does')
  return text


def text_of(file: str) -> str:
  """Returns the text in a caption's file; raises OSError or ValueError if it cannot be read."""
  with open(file, 'rb') as f:
    return decoded(f.read())


def table(file: str, tally: Tally) -> dict[str, str]:
  """Returns {file_name: caption} of a table of captions, a .csv or .jsonl file.

  Raises DataError for a row that lacks file_name or text, that repeats a file_name, or whose cells
  do not fit the header of the table.
  """
  found = {}
  try:
    with open(file, encoding='utf-8-sig', newline='') as f:
      for number, row in (_csv if file.endswith('.csv') else _jsonl)(f):
        name, text = (row.get(c) if isinstance(row, dict) else None for c in ('file_name', 'text'))
        if not isinstance(name, str) or not isinstance(text, str):
          raise ValueError(f'row {number} has no file_name and text')
        name = os.path.normpath(name)
        if name in found:
          raise ValueError(f'row {number} names {name!r} again')
        found[name] = tally.caption(text, name)
  except (OSError, ValueError) as e:
    quotes = ', a cell with a comma, a quote or a line end must stand in double quotes'
    raise errors.DataError(
      f'{file} cannot be read ({errors.brief(e)}); each row needs the texts file_name and text'
      f'{quotes if file.endswith(".csv") else ""}, and no file_name may occur twice: correct the '
      'table, and save it as UTF-8'
    ) from e
  return found


def _jsonl(f: TextIO) -> Iterator[tuple[int, Any]]:
  """Yields (number of the row, value) of the lines of a .jsonl file that are not blank."""
  for number, line in enumerate(f, 1):
    if line := _AROUND.sub('', line):
      try:
        yield number, json.loads(line)
      except (ValueError, RecursionError) as e:
        raise ValueError(f'row {number} is no JSON: {getattr(e, "msg", e)}') from e


def _csv(f: TextIO) -> Iterator[tuple[int, dict[str, str]]]:
  """Yields (number of the row, {column: cell}) of a .csv file; blank rows are passed over.

  Rows are counted from 1 as a spreadsheet counts them, with the header and with blank rows.
  """
  number, header = 0, []
  try:
    for number, cells in enumerate(csv.reader(f, strict=True), 1):
      if not any(map(str.strip, cells)):
        continue
      if not header:
        header = [_AROUND.sub('', c) for c in cells]
        if any(header.count(c) != 1 for c in ('file_name', 'text')):
          raise ValueError(
            f'row {number} is the header and must have each of the columns file_name and text '
            f'once; it has {", ".join(map(repr, header))}'
          )
      elif len(cells) != len(header):
        raise ValueError(
          f'row {number} has {len(cells)} cells, and the header has {len(header)} columns'
        )
      else:
        yield number, dict(zip(header, cells, strict=True))
  except csv.Error as e:
    raise ValueError(f'row {number + 1}: {e}') from e
