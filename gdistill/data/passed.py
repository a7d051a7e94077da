"""Tells which files a reader of pictures passes over: counts them by reason, with an example."""

import dataclasses
import os
from collections.abc import Iterable

# Reasons to pass a file over, as (noun, rest of the phrase).
DEEP = 'picture', 'in a folder too deep'
LOOSE = 'picture', 'in no class folder'
UNREAD = 'picture', 'of a format that is not read'
OTHER = 'file', 'without the suffix of a picture'
SMALL = 'picture', 'below a quarter of the side that pictures are resized to'
LINK = 'link', 'to a place that does not exist'
TWICE = 'folder', 'that another link leads to'
EMPTY = 'folder', 'without a picture'
SHEET = 'contact sheet', 'that gdistill wrote'
SHARD = 'archive', 'compressed or in a subfolder'
DOTTED = 'picture', "with a folder '.' or '..' in the name"
SECOND = 'picture', 'beside another picture of the same sample'
CAPTION = 'caption', 'beside another caption of the same sample'
_ORDER = (
  DEEP, LOOSE, UNREAD, OTHER, SMALL, LINK, TWICE, EMPTY, SHEET, SHARD, DOTTED, SECOND, CAPTION,
)  # fmt: skip

# Suffixes of pictures that no reader decodes.
_UNREAD = (
  '.heic', '.heif', '.jxl', '.jp2', '.j2k', '.svg', '.psd', '.tga', '.ico', '.exr', '.hdr', '.pcx',
  '.dng', '.raw', '.cr2', '.cr3', '.nef', '.arw', '.orf', '.rw2', '.eps', '.xcf', '.dds', '.fits',
)  # fmt: skip
# Files and folders that systems write beside pictures.
_SYSTEM = (
  '__macosx', '@eadir', 'thumbs.db', 'desktop.ini', '$recycle.bin', 'system volume information',
  'lost+found',
)  # fmt: skip
# Files that gdistill writes beside pictures; these files are not counted.
_OWN = 'request.json', 'figures.json', 'lock.json'


def counted(count: int, noun: str) -> str:
  """Returns '1 picture' or '2,000 pictures'."""
  return f'{count:,} {noun}{"" if count == 1 else "s"}'


def visible(name: str) -> bool:
  """Returns False for the name of a hidden or system file, such as '.DS_Store' or '__MACOSX'."""
  return not name.startswith('.') and name.lower() not in _SYSTEM


def is_unread(name: str) -> bool:
  """Returns whether `name` has the suffix of a picture that no reader decodes."""
  return name.lower().endswith(_UNREAD)


@dataclasses.dataclass(eq=False)
class Passed:
  """What a reader passed over: `found` is {reason: names}; a reason is a constant above.

  `str(passed)` is '20 pictures in a folder too deep (such as cat/2021/0.png), 1 file ...'.
  """

  found: dict[tuple[str, str], set[str]] = dataclasses.field(default_factory=dict)

  def add(self, reason: tuple[str, str], names: Iterable[str]) -> None:
    self.found.setdefault(reason, set()).update(names)

  def add_files(self, names: Iterable[str]) -> None:
    """Counts files that do not have the suffix of a picture that is read."""
    for name in names:
      if os.path.basename(name) not in _OWN:
        self.add(UNREAD if is_unread(name) else OTHER, (name,))

  def without(self, used: Iterable[str]) -> 'Passed':
    """Returns the same files without those that are `used` for something else, such as captions."""
    used = set(used)
    return Passed({reason: names - used for reason, names in self.found.items()})

  def __bool__(self) -> bool:
    return any(self.found.values())

  def __str__(self) -> str:
    found = ((reason, self.found[reason]) for reason in _ORDER if self.found.get(reason))
    parts = ((*reason, len(names), min(names)) for reason, names in found)
    return ', '.join(
      f'{count:,} {noun}{"s" if count > 1 else ""} {rest} '
      f'(such as {first if first.isprintable() else repr(first)})'
      for noun, rest, count, first in parts
    )

  def notes(self, where: str) -> tuple[str, ...]:
    """Returns one line that begins with `where`, or no line if nothing was passed over."""
    return (f'{where}: passed over {self}',) if self else ()
