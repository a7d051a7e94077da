"""Lists the pictures of a folder, a tar archive or a zip archive, and reads their bytes."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterable, Sequence

from gdistill import errors
from gdistill.data import archives
from gdistill.data import files
from gdistill.data import headers
from gdistill.data import looked
from gdistill.data import passed
from gdistill.data import sheet_marks

_MOST_BYTES = 16 * 2**30  # largest number of bytes of an archive's pictures in memory
LARGEST = 2**28  # largest number of bytes of one picture file


@dataclasses.dataclass(frozen=True, eq=False)
class Listing:
  """The pictures of a folder or an archive, with their sizes in bytes: {'train/cat/1.jpg': 4711}.

  All pictures of an archive are unpacked at the start, because a compressed archive cannot be read
  in random order. If `spool` is '', `contents` holds the bytes of an archive's pictures in memory.
  If `spool` is the path of a file, this file holds the bytes of an archive's pictures one after
  another, and `offsets` holds the position in the file where each picture begins.

  `others` are files that are no pictures, `folders` all folders, `broken` links that lead nowhere,
  and `sheets` contact sheets that gdistill wrote. Hidden and system files are in none of these.
  `dotted` are an archive's pictures and links with a folder '.' or '..' in the name; none is read.
  `times` holds the ctime and the mtime in ns of each file of a folder, and is None of an archive.
  """

  path: str
  sizes: dict[str, int]
  others: set[str]
  folders: set[str]
  broken: set[str]
  sheets: set[str] = dataclasses.field(default_factory=set)
  times: dict[str, tuple[int, int]] | None = None
  contents: dict[str, bytes] | None = None
  spool: str = ''
  offsets: dict[str, int] | None = None
  dotted: frozenset[str] = frozenset()

  def data(self, name: str, most: int = -1) -> bytes:
    """Returns the first `most` bytes of a picture, by default all bytes."""
    if self.contents is not None:
      return self.contents[name][: None if most < 0 else most]
    size = min(self.sizes[name], LARGEST) if most < 0 else min(self.sizes[name], most)
    file = os.path.join(self.path, name)
    return read_bytes(self.spool or file, file, self.offsets[name] if self.spool else 0, size)

  def looks(self, names: Sequence[str], split: str, poll: Callable[[], None]) -> list[headers.Look]:
    """Looks at the pictures of a split: hashes samples of their bytes, reads widths and heights.

    `poll()` is called now and then, and may raise to stop.
    """
    if self.times is None:
      return headers.of_all(self._look, names, poll)
    files = [(n, self.sizes[n], *self.times[n]) for n in names]
    return looked.looks(os.path.join(self.path, split), files, self._look, poll)

  def _look(self, name: str) -> headers.Look:
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


def read_bytes(file: str, name: str, first: int, size: int) -> bytes:
  """Returns `size` bytes of a file from byte `first`; `name` is the name in error lines."""
  try:
    with open(file, 'rb') as f:
      f.seek(first)
      return f.read(size)
  except OSError as e:
    raise errors.DataError(f'{name} cannot be read: {e.strerror}; fix or remove the file') from e


def _folder(path: str, splits: Sequence[str]) -> Listing:
  """Lists a folder: the `splits` at any depth, and all else at most two folders deep."""
  if not path or not os.path.isdir(path):
    raise errors.DataError(
      f'data.path={path!r} is no folder or archive; give the path of the pictures to train on'
    )
  sizes, times = {}, {}
  found = Listing(path, sizes, set(), set(), set(), times=times)
  tops = {s.partition('/')[0] for s in splits}
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
        there = e.stat()
        sizes[name] = there.st_size
        times[name] = there.st_ctime_ns, there.st_mtime_ns
      else:
        found.others.add(name)

  while todo:
    folder, prefix, above = todo.pop()
    if prefix.count('/') > 2 and not {'', prefix.partition('/')[0]} & tops:
      continue
    real = os.path.realpath(folder)
    if real in above:  # a link that leads back to a folder above is no folder of its own
      found.folders.discard(prefix[:-1])
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
  dotted = frozenset(filter(archives.is_dotted, (*names.others, *names.links)))
  sizes = {n: where[at][1] if spool else len(contents[at]) for n, at in real.items()}
  if spool:
    offsets = {n: where[at][0] for n, at in real.items()}
    kept = {'spool': spool, 'offsets': offsets}
    return Listing(path, sizes, others, folders, broken, **kept, dotted=dotted)
  kept = {n: contents[at] for n, at in real.items()}
  return Listing(path, sizes, others, folders, broken, contents=kept, dotted=dotted)


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

  Returns '' if there are several top folders, or if the split `prefix` lies at the top. If the
  split is '', a folder with pictures of its own is a class, unless several folders in it have
  pictures, and more than it has.
  """
  depth = prefix.count('/') + 1
  tops = {n.partition('/')[0] for n in names if '/' in n}
  top = f'{min(tops)}/' if len(tops) == 1 else ''

  def inside(start, depth):
    return [n.rpartition('/')[0] for n in names if n.startswith(start) and n.count('/') == depth]

  at_top, below = inside(prefix, depth), inside(top + prefix, depth + 1)
  several = not prefix and len(set(below)) > 1 and len(below) > len(at_top)
  return top if top and below and (several or not at_top) else ''
