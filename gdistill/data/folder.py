"""Reads pictures `<split>/<class>/<name>.jpg` from a folder, a tar archive or a zip archive."""

import dataclasses
import os
from collections.abc import Callable, Sequence

import numpy as np

from gdistill import errors
from gdistill.data import earlier
from gdistill.data import headers
from gdistill.data import listings
from gdistill.data import passed
from gdistill.data import pictures
from gdistill.data import source
from gdistill.recipe import settings as recipes

# Advice in error lines; `gdistill prepare` replaces it by its own flags.
CLASSES_AT_TOP = "set data.split='' and data.held_out=0.05 in the config"
NO_HELD_OUT = 'use no held-out split and set data.held_out=0.05 in the config'
_MOST_NAMED = 5  # largest number of class folders that an error line names


def load(
  settings: recipes.Data, shape: tuple[int, int, int]
) -> tuple[source.Source, source.Source]:
  """Returns (training, held out), two sources of the pictures at data.path.

  The two sources are the splits data.split and data.held_out_split. If data.held_out is set, the
  pictures of data.split are divided, and the share data.held_out of every class is held out. If the
  name of a split is '', the class folders lie directly in data.path. The class names are the sorted
  names of the class folders. Pictures whose size is not `shape` are cropped and resized. Raises
  DataError if a class folder of data.split has no picture.
  """
  splits = [settings.split] if settings.held_out else [settings.split, settings.held_out_split]
  found = listings.listing(settings.path, splits)
  train = split(found, settings.split, shape)
  if settings.held_out:
    return source.held_out(train, settings.held_out)
  held = split(found, settings.held_out_split, shape, held_out=True)
  splits = (settings.split, settings.held_out_split)
  source.same_classes(train, held, f'data.path={settings.path}', splits)
  return train, held


def split(
  listed: listings.Listing,
  name: str,
  shape: tuple[int, int, int],
  held_out: bool = False,
  poll: Callable[[], None] = lambda: None,
) -> source.Source:
  """Returns the source of the pictures in `<name>/<class>/`, or in `<class>/` if `name` is ''.

  `read.notes` of the source says what was passed over. Raises DataError if there are no pictures,
  or if a class folder has no pictures and the split is not held out; `poll()` may raise to stop.
  """
  prefix = f'{name}/' if name else ''
  depth = prefix.count('/') + 1
  names = [n for n in listed.sizes if n.startswith(prefix) and n.count('/') == depth]
  over = _passed_over(listed, prefix, held_out)
  if not names:
    raise errors.DataError(_nothing(listed, prefix, over, held_out))
  names.sort(key=lambda n: n.split('/'))  # sorts by class, then by file name
  looks = listed.looks(names, name, poll)
  names, small, stamps = headers.sifted(names, looks, shape[0])
  over.add(passed.SMALL, small)
  classes = [n.removeprefix(prefix).partition('/')[0] for n in names]
  class_names = tuple(sorted(set(classes)))
  within = {n for n in (*listed.folders, *listed.broken) if n.startswith(prefix)}
  empty = {n for n in within if n.count('/') == depth - 1} - {prefix + c for c in class_names}
  if empty and not held_out:
    raise errors.DataError(_empty(listed, sorted(empty), depth, small))
  over.add(passed.EMPTY, empty - listed.broken)
  numbers = {c: k for k, c in enumerate(class_names)}
  labels = np.array([numbers[c] for c in classes], np.int32)
  sizes = np.array([listed.sizes[n] for n in names], np.int64)
  contents = listed.contents and [listed.contents[n] for n in names]
  offsets = listed.offsets and np.array([listed.offsets[n] for n in names], np.int64)
  parts = [f'{n.removeprefix(prefix)} {size}' for n, size in zip(names, sizes, strict=True)]
  read = _Read(
    listed.path, names, sizes, labels, shape, contents, listed.spool, offsets,
    over.notes(f'data.path={listed.path}'), source.fingerprint(parts), stamps,
  )  # fmt: skip
  printed = source.fingerprint(map(' '.join, zip(parts, map(bytes.hex, stamps), strict=True)))
  return source.Source(
    read, len(names), shape, class_names, printed, heavy=contents is not None,
    otherwise=earlier.of_names(names, small),
  )  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class _Read:
  """Reads example i as (pixels, label).

  The reader is a class, not a closure, because worker processes unpickle the reader.
  """

  path: str
  names: list[str]  # paths of the pictures, such as 'train/cat/1.jpg'
  sizes: np.ndarray
  labels: np.ndarray
  shape: tuple[int, int, int]
  contents: list[bytes] | None
  spool: str
  offsets: np.ndarray | None
  notes: tuple[str, ...]
  printed: str  # the fingerprint in earlier versions
  stamps: list[bytes] | None  # hashes of the files; None: `part` is as in earlier versions

  def __call__(self, i: int) -> tuple[np.ndarray, int]:
    name = os.path.join(self.path, self.names[i])
    pixels = pictures.squared(self.file_bytes(i), name, self.shape[2], self.shape[0])
    return pixels, int(self.labels[i])

  def before(self) -> tuple['_Read', str]:
    return dataclasses.replace(self, stamps=None), self.printed

  def name(self, i: int) -> str:
    return self.names[i]

  def part(self, i: int) -> str:
    """Returns name, size, label and hash of example i as one string, for a fingerprint."""
    stamp = f' {self.stamps[i].hex()}' if self.stamps is not None else ''
    return f'{self.names[i]} {self.sizes[i]} {self.labels[i]}{stamp}'

  def file_bytes(self, i: int) -> bytes:
    if self.contents is not None:
      return self.contents[i]
    name = os.path.join(self.path, self.names[i])
    if not self.spool:
      return listings.read_bytes(name, name, 0, listings.LARGEST)
    return listings.read_bytes(self.spool, name, int(self.offsets[i]), int(self.sizes[i]))


def _passed_over(listed: listings.Listing, prefix: str, held_out: bool = False) -> passed.Passed:
  """Returns what is passed over in the split `prefix`.

  Unless the split is held out, pictures that lie beside all splits, and pictures of an archive with
  '..' in their names, are counted too.
  """
  depth, over = prefix.count('/') + 1, passed.Passed()
  beside = [] if held_out or not prefix else [n for n in listed.sizes if '/' not in n]
  inside = [n for n in listed.sizes if n.startswith(prefix)]
  over.add(passed.DEEP, (n for n in inside if n.count('/') > depth))
  over.add(passed.LOOSE, (*beside, *(n for n in inside if n.count('/') < depth)))
  over.add_files(n for n in listed.others if n.startswith(prefix))
  over.add(passed.LINK, (n for n in listed.broken if n.startswith(prefix)))
  over.add(passed.SHEET, (n for n in listed.sheets if n.startswith(prefix)))
  over.add(passed.DOTTED, () if held_out else listed.dotted)
  return over


def _empty(listed: listings.Listing, folders: list[str], depth: int, small: Sequence[str]) -> str:
  """Returns the text of the DataError for class folders without pictures."""
  over, known = passed.Passed(), set(folders)

  def inside(names):
    return (n for n in names if '/'.join(n.split('/')[:depth]) in known)

  over.add(passed.SMALL, inside(small))
  over.add(passed.DEEP, (n for n in inside(listed.sizes) if n.count('/') > depth))
  over.add_files(inside(listed.others))
  over.add(passed.LINK, inside(listed.broken))
  over.add(passed.SHEET, inside(listed.sheets))
  over.add(passed.DOTTED, inside(listed.dotted))
  some, more = ', '.join(folders[:_MOST_NAMED]), len(folders) - _MOST_NAMED
  one = len(folders) == 1
  return (
    f'data.path={listed.path}: the class folder{"" if one else "s"} {some}'
    f'{f" and {more:,} more" if more > 0 else ""} {"has" if one else "have"} no pictures, so '
    f'training would miss {"this class" if one else "these classes"}; '
    f'passed over: {over or "nothing, because nothing is there"}; '
    f'put {"larger " if over.found.get(passed.SMALL) else ""}pictures directly into '
    f'{folders[0]}, or remove {"it" if one else "these folders"}: '
    'see "Folders of classes" in docs/data.md'
  )


def _nothing(
  listed: listings.Listing, prefix: str, over: passed.Passed, held_out: bool = False
) -> str:
  """Returns the text of the DataError for a split that has no pictures."""
  where = f'data.path={listed.path}'
  names = [n for n in listed.sizes if n.startswith(prefix)]
  flat = sum(n.count('/') == prefix.count('/') for n in names)
  if flat:
    return (
      f'{where}: {prefix or "its top"} has {flat:,} pictures in no class subfolder, so without '
      "labels (ImageNet's validation pictures come like that); sort the pictures into "
      f'<class>/ folders, or {NO_HELD_OUT}'
    )
  tops = sorted({n.partition('/')[0] for n in (*listed.sizes, *listed.folders)})
  below = sorted(n for n in listed.folders if f'{n}/'.endswith(f'/{prefix}'))
  if prefix and below:
    unpack = 'unpack the archive and ' if os.path.isfile(listed.path) else ''
    top = below[0].removesuffix(f'/{prefix[:-1]}')
    path = top if unpack else os.path.join(listed.path, top)
    advice = f'{prefix} lies in {top}/: {unpack}set data.path={path}'
  elif names:
    inner = prefix + min(names).removeprefix(prefix).partition('/')[0]
    advice = (
      'put the pictures directly into the class folders, or give the folder of the class folders '
      f'as the split, such as {inner}'
    )
  elif prefix and _classes_at_top(listed):
    advice = f'the class folders lie directly in it: {CLASSES_AT_TOP}'
  else:
    advice = 'as the split, give the name of the folder of the classes'
    advice += f', or {NO_HELD_OUT}' if held_out else ''
  told = f'; passed over: {over}' if over else ''
  return (
    f'{where} has no pictures named {prefix}<class>/<name> ending in '
    f'{", ".join(pictures.SUFFIXES)}; it holds {", ".join(tops[:5]) or "none at all"}'
    f'{", ..." if len(tops) > 5 else ""}{told}; {advice}: see "Folders of classes" in docs/data.md'
  )


def _classes_at_top(listed: listings.Listing) -> bool:
  """Returns whether the folders at the top look like classes: most pictures lie directly in them.

  A single folder is not taken for a class.
  """
  depths = [n.count('/') for n in listed.sizes]
  tops = {n.partition('/')[0] for n in listed.sizes if n.count('/') == 1}
  return len(tops) > 1 and depths.count(1) > sum(depth > 1 for depth in depths)
