"""Reads pictures `<split>/<class>/<name>.jpg` from a folder, a tar archive or a zip archive."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from gdistill import errors
from gdistill.data import archives
from gdistill.data import earlier
from gdistill.data import files
from gdistill.data import headers
from gdistill.data import passed
from gdistill.data import pictures
from gdistill.data import sheet_marks
from gdistill.data import source
from gdistill.recipe import settings as recipes

_MOST_BYTES = 16 * 2**30  # largest number of bytes of an archive's pictures in memory
_LARGEST = 2**28  # largest number of bytes of one picture file
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
  found = listing(settings.path, splits)
  train = split(found, settings.split, shape)
  if settings.held_out:
    return source.held_out(train, settings.held_out)
  held = split(found, settings.held_out_split, shape, held_out=True)
  splits = (settings.split, settings.held_out_split)
  source.same_classes(train, held, f'data.path={settings.path}', splits)
  return train, held


@dataclasses.dataclass(frozen=True, eq=False)
class Listing:
  """The pictures of a folder or an archive, with their sizes in bytes: {'train/cat/1.jpg': 4711}.

  All pictures of an archive are unpacked at the start, because a compressed archive cannot be read
  in random order. If `spool` is '', `contents` holds the bytes of an archive's pictures in memory.
  If `spool` is the path of a file, this file holds the bytes of an archive's pictures one after
  another, and `offsets` holds the position in the file where each picture begins.

  `others` are files that are no pictures, `folders` all folders, `broken` links that lead nowhere,
  and `sheets` contact sheets that gdistill wrote. Hidden and system files are in none of these.
  """

  path: str
  sizes: dict[str, int]
  others: set[str]
  folders: set[str]
  broken: set[str]
  sheets: set[str] = dataclasses.field(default_factory=set)
  contents: dict[str, bytes] | None = None
  spool: str = ''
  offsets: dict[str, int] | None = None

  def data(self, name: str, most: int = -1) -> bytes:
    """Returns the first `most` bytes of a picture, by default all bytes."""
    if self.contents is not None:
      return self.contents[name][: None if most < 0 else most]
    size = min(self.sizes[name], _LARGEST) if most < 0 else min(self.sizes[name], most)
    file = os.path.join(self.path, name)
    return _bytes(self.spool or file, file, self.offsets[name] if self.spool else 0, size)

  def look(self, name: str) -> headers.Look:
    """Looks at a picture: hashes samples of its bytes and reads its width and height."""
    if self.contents is not None:
      return headers.of_bytes(self.contents[name])
    part = (self.offsets[name], self.sizes[name]) if self.spool else ()
    return headers.of_file(self.spool or os.path.join(self.path, name), *part)


def listing(
  path: str, splits: Sequence[str], spool: str = '', poll: Callable[[], None] = lambda: None
) -> Listing:
  """Lists the pictures of a folder or an archive; unpacks an archive to the file `spool`.

  If `spool` is '', the pictures of an archive are unpacked to memory. `poll()` is called between
  the pictures of an archive and may raise an exception to stop the unpacking. Of a folder, only the
  `splits` are listed at any depth. If all pictures of an archive lie in one top folder, which holds
  the split splits[0], the names in the listing begin below this top folder.
  """
  found = _archive(path, spool, poll) if os.path.isfile(path) else _folder(path, splits)
  for name in sorted(filter(archives.is_picture, found.broken)):
    lost = 'does not exist; add that file, or remove the link'
    if os.path.isfile(path):
      lost = 'the archive does not hold; pack it with that file (tar --dereference packs no links)'
    raise errors.DataError(f'data.path={path}: {name} is a link to a file that {lost}')
  found = _without_sheets(found)
  top = _one_top(found.sizes, f'{splits[0]}/' if splits[0] else '')
  if not top or not os.path.isfile(path):
    return found

  def below(names):
    # Files beside the top folder are kept, to be counted as passed over.
    kept = [n for n in names if n.startswith(top) or ('/' not in n and names is not found.folders)]
    if not isinstance(names, dict):
      return {n.removeprefix(top) for n in kept}
    return {n.removeprefix(top): names[n] for n in kept}

  fields = ('sizes', 'others', 'folders', 'broken', 'sheets', 'contents', 'offsets')
  values = {f: getattr(found, f) for f in fields}
  return dataclasses.replace(found, **{f: v and below(v) for f, v in values.items()})


def split(
  listed: Listing,
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
    raise errors.DataError(_nothing(listed, prefix, over))
  names.sort(key=lambda n: n.split('/'))  # sorts by class, then by file name
  looks = headers.of_all(listed.look, names, poll)
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
      return _bytes(name, name, 0, _LARGEST)
    return _bytes(self.spool, name, int(self.offsets[i]), int(self.sizes[i]))


def _bytes(file: str, name: str, first: int, size: int) -> bytes:
  """Returns `size` bytes of a file from byte `first`; `name` is the name in error lines."""
  try:
    with open(file, 'rb') as f:
      f.seek(first)
      return f.read(size)
  except OSError as e:
    raise errors.DataError(f'{name} cannot be read: {e.strerror}; fix or remove the file') from e


def _passed_over(listed: Listing, prefix: str, held_out: bool = False) -> passed.Passed:
  """Returns what is passed over in the split `prefix`.

  Unless the split is held out, pictures that lie beside all splits are counted too.
  """
  depth, over = prefix.count('/') + 1, passed.Passed()
  beside = [] if held_out or not prefix else [n for n in listed.sizes if '/' not in n]
  inside = [n for n in listed.sizes if n.startswith(prefix)]
  over.add(passed.DEEP, (n for n in inside if n.count('/') > depth))
  over.add(passed.LOOSE, (*beside, *(n for n in inside if n.count('/') < depth)))
  over.add_files(n for n in listed.others if n.startswith(prefix))
  over.add(passed.LINK, (n for n in listed.broken if n.startswith(prefix)))
  over.add(passed.SHEET, (n for n in listed.sheets if n.startswith(prefix)))
  return over


def _empty(listed: Listing, folders: list[str], depth: int, small: Sequence[str]) -> str:
  """Returns the text of the DataError for class folders without pictures."""
  over, known = passed.Passed(), set(folders)

  def inside(names):
    return (n for n in names if '/'.join(n.split('/')[:depth]) in known)

  over.add(passed.SMALL, inside(small))
  over.add(passed.DEEP, (n for n in inside(listed.sizes) if n.count('/') > depth))
  over.add_files(inside(listed.others))
  over.add(passed.LINK, inside(listed.broken))
  over.add(passed.SHEET, inside(listed.sheets))
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


def _nothing(listed: Listing, prefix: str, over: passed.Passed) -> str:
  """Returns the text of the DataError for a split that has no pictures."""
  where = f'data.path={listed.path}'
  names = [n for n in listed.sizes if n.startswith(prefix)]
  flat = sum(n.count('/') == prefix.count('/') for n in names)
  if flat:
    return (
      f'{where}: {prefix or "its top"} has {flat:,} pictures in no class subfolder, so without '
      "labels (ImageNet's validation pictures come like that); sort the pictures into "
      '<class>/ folders, or use no held-out split and set data.held_out=0.05 in the recipe'
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
  else:
    advice = 'as the split, give the name of the folder of the classes'
  told = f'; passed over: {over}' if over else ''
  return (
    f'{where} has no pictures named {prefix}<class>/<name> ending in '
    f'{", ".join(pictures.SUFFIXES)}; it holds {", ".join(tops[:5]) or "none at all"}'
    f'{", ..." if len(tops) > 5 else ""}{told}; {advice}: see "Folders of classes" in docs/data.md'
  )


def _folder(path: str, splits: Sequence[str]) -> Listing:
  """Lists a folder: the `splits` at any depth, and all else at most two folders deep."""
  if not path or not os.path.isdir(path):
    raise errors.DataError(
      f'data.path={path!r} is no folder or archive; give the path of the pictures to train on'
    )
  found, tops = Listing(path, {}, set(), set(), set()), {s.partition('/')[0] for s in splits}
  todo: list[tuple[str, str, tuple[str, ...]]] = [(path, '', ())]

  def look(folder, prefix, above):
    for e in (e for e in os.scandir(folder) if passed.visible(e.name)):
      name = prefix + e.name
      if e.is_symlink() and not os.path.exists(e.path):  # a link to itself makes is_dir raise
        found.broken.add(name)
      elif e.is_dir():
        found.folders.add(name)
        todo.append((e.path, f'{name}/', above))
      elif archives.is_picture(e.name):
        found.sizes[name] = e.stat().st_size
      else:
        found.others.add(name)

  while todo:
    folder, prefix, above = todo.pop()
    if prefix.count('/') > 2 and not {'', prefix.partition('/')[0]} & tops:
      continue
    real = os.path.realpath(folder)
    if real in above:  # a link that leads back to a folder above
      continue
    try:
      look(folder, prefix, (*above, real))
    except OSError as e:
      raise errors.DataError(
        f'data.path={path}: {e.filename or folder} cannot be listed: {e.strerror}; make the '
        'folder readable'
      ) from e
  return found


def _archive(path: str, spool: str, poll: Callable[[], None]) -> Listing:
  """Lists an archive, and unpacks its pictures to memory, or to the file `spool`."""
  names, contents, where, end = archives.Names(), {}, {}, 0
  most, verb = (2**50, 'unpack') if spool else (_MOST_BYTES, 'keep in memory')

  def unpack(f, wanted):
    nonlocal end
    for name, data in archives.read(path, most, verb, names, wanted):
      if f is None:
        contents[name] = data
      else:
        where[name] = end, len(data)
        end += f.write(data)
        poll()

  def linked(f):
    """Unpacks the files that are pictures only under the name of a link; returns the tree."""
    tree = archives.tree(path, {*contents, *where}, names)
    rest = {at for n, at in tree.files.items() if archives.is_picture(n)} - {*contents, *where}
    if rest:
      unpack(f, lambda name: name in rest)
    return tree

  try:
    with open(spool, 'wb') if spool else contextlib.nullcontext() as f:
      unpack(f, archives.is_picture)
      tree = linked(f)
  except OSError as e:
    raise files.unwritable(spool, e) from e
  real = {n: at for n, at in tree.files.items() if archives.is_picture(n)}
  rest = tree.files.keys() - real.keys()
  others, folders, broken = (set(filter(_seen, s)) for s in (rest, tree.folders, tree.broken))
  sizes = {n: where[at][1] if spool else len(contents[at]) for n, at in real.items()}
  if spool:
    offsets = {n: where[at][0] for n, at in real.items()}
    return Listing(path, sizes, others, folders, broken, spool=spool, offsets=offsets)
  kept = {n: contents[at] for n, at in real.items()}
  return Listing(path, sizes, others, folders, broken, contents=kept)


def _seen(name: str) -> bool:
  return all(map(passed.visible, name.split('/')))


def _without_sheets(listed: Listing) -> Listing:
  names = (*listed.sizes, *listed.others)
  sheets = sheet_marks.sheets(names, lambda n: listed.data(n, headers.SAMPLE))
  if not sheets:
    return listed
  sizes = {n: size for n, size in listed.sizes.items() if n not in sheets}
  return dataclasses.replace(listed, sizes=sizes, sheets=sheets)


def _one_top(names: Iterable[str], prefix: str) -> str:
  """Returns 'top/' if all pictures in folders lie in the folder `top`, which holds the split.

  Returns '' if there are several top folders, or if the split `prefix` lies at the top.
  """
  depth = prefix.count('/') + 1
  tops = {n.partition('/')[0] for n in names if '/' in n}
  top = f'{min(tops)}/' if len(tops) == 1 else ''

  def has(start, depth):
    return any(n.startswith(start) and n.count('/') == depth for n in names)

  return top if top and not has(prefix, depth) and has(top + prefix, depth + 1) else ''
