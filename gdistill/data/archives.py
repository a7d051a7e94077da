"""Reads the pictures of a zip or tar archive, and follows links between the archive's files."""

import dataclasses
import os
import posixpath
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator

from gdistill import errors
from gdistill.data import passed
from gdistill.data import pictures

SUFFIXES = ('.zip', '.tar', '.tar.gz', '.tgz', '.tar.bz2', '.tbz2', '.tar.xz', '.txz')
_MOST_MEMBERS = 2_000_000  # largest number of pictures in one archive
_LARGEST = 2**28  # largest number of bytes of one picture file
_MOST_RATIO = 200  # largest ratio of the pictures' unpacked bytes to the archive's bytes
_LONGEST_LINK = 4096  # largest number of bytes of the path that a link in a zip archive holds
OUTSIDE = '/..'  # a path that leads out of the archive
_MOST_LINKS = 40  # largest number of links that one path may lead through


@dataclasses.dataclass(eq=False)
class Names:
  """The names in an archive that `read` does not yield: other files, folders and links.

  `links` is {name of a link: path that the link leads to}. A path that begins with '/' begins at
  the top of the archive.
  """

  others: set[str] = dataclasses.field(default_factory=set)
  folders: set[str] = dataclasses.field(default_factory=set)
  links: dict[str, str] = dataclasses.field(default_factory=dict)


def is_picture(name: str) -> bool:
  """Returns whether `name` has the suffix of a picture, and no hidden or system folder."""
  return name.lower().endswith(pictures.SUFFIXES) and all(map(passed.visible, name.split('/')))


def is_dotted(name: str) -> bool:
  """Returns whether `name` is that of a picture but for a folder '.' or '..' in it."""
  plain = '/'.join(part for part in name.split('/') if part not in ('.', '..'))
  return plain != name and is_picture(plain)


def read(
  path: str,
  most_bytes: int,
  too_much: str,
  names: Names,
  wanted: Callable[[str], bool] = is_picture,
) -> Iterator[tuple[str, bytes]]:
  """Yields (name, bytes) of every file that is `wanted`, without writing to the disk.

  The names of all other files, of folders and of links are added to `names`. Raises DataError if
  the archive is damaged or too large; the files may have at most `most_bytes` bytes together.
  `too_much` is the verb in the error line about the size: 'unpack' or 'keep in memory'.
  """
  if not path.lower().endswith(SUFFIXES):
    raise errors.DataError(
      f'data.path={path} is a file, but no archive ({", ".join(SUFFIXES)}); unpack the file '
      'and give the path of the folder: see "Archives" in docs/data.md'
    )
  members = total = 0
  most = min(most_bytes, 2**26 + _MOST_RATIO * os.path.getsize(path))

  def checked(name, size, read):
    nonlocal members, total
    members, total = members + 1, total + size
    if members > _MOST_MEMBERS or size > _LARGEST or total > most:
      raise _too_much(path, most, too_much)
    # One byte more than `size` is read, to notice a picture that is longer than the header says.
    data = read(size + 1)
    if len(data) != size:
      raise errors.DataError(
        f'{path}: {name} has another length than the archive says; pack the archive again'
      )
    return name, data

  walk = None
  try:
    walk = _zip if zipfile.is_zipfile(path) else _tar  # raises for a part of a split archive
    for name, size, read in walk(path, names):
      if wanted(name):
        yield checked(name, size, read)
      else:
        names.others.add(name)
  except (errors.DataError, GeneratorExit):
    raise
  # All exceptions are caught, because tarfile, zipfile, lzma and zlib raise their own exceptions.
  except Exception as e:
    no_zip = path.lower().endswith('.zip') and walk is _tar and isinstance(e, tarfile.ReadError)
    reason = 'it is no whole zip archive' if no_zip else errors.brief(e)
    raise errors.DataError(
      f'data.path={path} cannot be read: {reason}; copy the archive again'
    ) from e


def _zip(path: str, names: Names) -> Iterator[tuple[str, int, Callable[[int], bytes]]]:
  with zipfile.ZipFile(path) as z:

    def reader(info):
      def read(most):
        with z.open(info) as f:
          return f.read(most)

      return read

    for info in z.infolist():
      # Some programs on Windows write '\\' between the folders of a name.
      name = info.filename if '/' in info.filename else info.filename.replace('\\', '/')
      name, read = _plain(name), reader(info)
      if name.endswith('/') or not name:
        names.folders.add(name.rstrip('/'))
      elif stat.S_ISLNK(info.external_attr >> 16):
        target = read(_LONGEST_LINK).decode('utf-8', 'surrogateescape')
        names.links[name] = OUTSIDE if target.startswith('/') else target
      else:
        yield name, info.file_size, read


def _tar(path: str, names: Names) -> Iterator[tuple[str, int, Callable[[int], bytes]]]:
  with tarfile.open(path, tarinfo=_Member) as t:
    for member in t:
      name = _plain(member.name)
      if member.isdir():
        names.folders.add(name)
      elif target := link(member):
        names.links[name] = target
      elif member.isfile():
        yield name, member.size, t.extractfile(member).read


def link(member: tarfile.TarInfo) -> str:
  """Returns the path that a link in a tar archive leads to, as in Names; '' if it is no link."""
  if member.islnk():
    return '/' + _plain(member.linkname)
  outside = member.linkname.startswith('/')
  return (OUTSIDE if outside else member.linkname) if member.issym() else ''


def _plain(name: str) -> str:
  return '' if name == '.' else name.removeprefix('./').lstrip('/')


def _too_much(path: str, most: int, too_much: str) -> errors.DataError:
  return errors.DataError(
    f'data.path={path} holds more than {_MOST_MEMBERS:,} pictures, more than '
    f'{most / 2**30:.3g} GiB or a picture of over {_LARGEST / 2**30:g} GiB, which is too much '
    f'to {too_much}; unpack the archive yourself and give the path of the folder'
  )


class _Member(tarfile.TarInfo):
  """A file in a tar archive; a damaged header, or damaged extended headers, raise ReadError.

  The class tarfile.TarInfo would take the damage for the end of the archive, so the pictures after
  a damaged header would be missing without an error.
  """

  @classmethod
  def fromtarfile(cls, archive):
    try:
      return super().fromtarfile(archive)
    except tarfile.EOFHeaderError:
      raise
    except tarfile.HeaderError as e:
      raise tarfile.ReadError(str(e)) from e


@dataclasses.dataclass(frozen=True, eq=False)
class Tree:
  """The files and folders of an archive as they would lie on a disk, with all links followed.

  `files` is {name: name of the file in the archive}; the two names differ if a link is on the way.
  """

  files: dict[str, str]
  folders: set[str]
  broken: set[str]  # links that lead out of the archive, to nothing, or in a circle


def tree(path: str, files: Iterable[str], names: Names) -> Tree:
  """Returns the tree of the archive `path`, which holds `files` and all `names`."""
  files, links = {*files, *names.others}, names.links
  # {folder: names of the files, folders and links in the folder}
  inside = {folder: set() for folder in ('', *names.folders)}
  for name in (*files, *names.folders, *links):
    while name:
      above, _, last = name.rpartition('/')
      inside.setdefault(above, set()).add(last)
      name = above
  if not links:
    return Tree({n: n for n in files}, {n for n in inside if n}, set())
  found = Tree({}, set(), set())
  todo = [('', '', ('',), 0)]  # a list, because folders may lie deeper than functions may call

  def look(shown, real, above, hops):
    for entry in sorted(inside[real]):
      name, place = posixpath.join(shown, entry), posixpath.join(real, entry)
      plain = place not in links and entry not in ('', '.', '..')
      at, count = place if plain else followed(place, links), hops + (place in links)
      if at in files:
        found.files[name] = at
        if len(found.files) > _MOST_MEMBERS:
          raise errors.DataError(
            f'data.path={path}: links of this archive lead to more than {_MOST_MEMBERS:,} files; '
            'unpack the archive yourself and give the path of the folder'
          )
      elif at not in inside or count > _MOST_LINKS:
        found.broken.add(name)
      elif at not in above:
        found.folders.add(name)
        todo.append((name, at, (*above, at), count))

  while todo:
    look(*todo.pop())
  return found


def followed(name: str, links: dict[str, str]) -> str | None:
  """Returns the path in the archive that `name` leads to; None if a link on the way is broken."""
  done: list[str] = []
  rest, hops = name.split('/')[::-1], 0
  while rest:
    part = rest.pop()
    here = '/'.join((*done, part))
    if part == '..':
      if not done:
        return None
      done.pop()
    elif here in links:
      target, hops = links[here], hops + 1
      if hops > _MOST_LINKS:
        return None
      if target.startswith('/'):
        done = []
      rest += target.strip('/').split('/')[::-1]
    elif part not in ('', '.'):
      done.append(part)
  return '/'.join(done)
