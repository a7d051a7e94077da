"""Remembers what was found in the picture files of large folders, so that a start opens no file.

The memory of a folder is one file in $GDISTILL_LOOKED, by default ~/.cache/gdistill/looked. It may
be deleted at any time: the pictures are then looked at again.
"""

import contextlib
import hashlib
import os
import pathlib
import time
from collections.abc import Callable, Sequence

import numpy as np

from gdistill import errors
from gdistill.data import headers
from gdistill.workdir import storage

MANY = 10_000  # a folder of fewer pictures is not remembered: looking at it takes about a second
# A file that was changed so short a time (in ns) before the look is looked at again at the next
# start, because a change after the look may have given it the same time.
_FRESH = 2 * 10**9
# Raise this number with every change of `headers.look` or of the fields below.
_VERSION = 1
_ROW = np.dtype([
  ('name', '<u8'), ('size', '<i8'), ('changed', '<i8'), ('modified', '<i8'),
  ('stamp', 'V16'), ('width', '<i4'), ('height', '<i4'),
])  # fmt: skip
_KEY = 'name', 'size', 'changed', 'modified'
_DIGEST = 32  # number of bytes of the hash at the start of the file


def looks(
  folder: str,
  files: Sequence[tuple[str, int, int, int]],
  look: Callable[[str], headers.Look],
  poll: Callable[[], None] = lambda: None,
) -> list[headers.Look]:
  """Returns the looks at `files`: (name, size in bytes, ctime in ns, mtime in ns) of each.

  `look(name)` is called only for a file that is not remembered, or whose size or time differs from
  what is remembered. Files that cannot be read are not remembered, and neither is a folder of
  fewer than MANY pictures, or one whose file system has no ctime: there all have the same. Without
  a ctime a changed file may be taken for the old one, because programs set an mtime back. `poll()`
  is called now and then, and may raise to stop.
  """
  names = [name for name, *_ in files]
  if len(files) < MANY:
    return headers.of_all(look, names, poll)
  memory, began = _file(folder), time.time_ns()
  rows = np.zeros(len(files), _ROW)
  rows['name'] = [_number(name) for name in names]
  for k, field in enumerate(_KEY[1:], 1):
    rows[field] = [one[k] for one in files]
  new = np.flatnonzero(~_recall(memory, rows))
  for k, found in zip(new, headers.of_all(look, [names[k] for k in new], poll), strict=True):
    sides = (min(side, 2**31 - 1) for side in (found.width, found.height))  # a damaged header
    rows[k] = (*rows[k].tolist()[: len(_KEY)], found.stamp, *sides)
  if len(new):
    last = np.maximum(rows['changed'], rows['modified'])
    sure = (rows['width'] > 0) & (last < began - _FRESH)
    if rows['changed'].min() < rows['changed'].max():
      _keep(memory, np.sort(rows[sure], order='name'))
  columns = rows['stamp'].tolist(), rows['width'].tolist(), rows['height'].tolist()
  return [headers.Look(*row) for row in zip(*columns, strict=True)]


def of_files(folder: str, names: Sequence[str]) -> list[headers.Look]:
  """Returns the looks at the files `names`, paths of files that belong to `folder`."""
  if len(names) < MANY:
    return headers.of_all(headers.of_file, names)

  def times(name):
    try:
      there = os.stat(name)
    except OSError:  # reading the file will raise
      return 0, 0, 0
    return there.st_size, there.st_ctime_ns, there.st_mtime_ns

  return looks(folder, [(name, *times(name)) for name in names], headers.of_file)


def _file(folder: str) -> pathlib.Path:
  name = hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()[:24]
  where = os.environ.get('GDISTILL_LOOKED') or '~/.cache/gdistill/looked'
  return pathlib.Path(os.path.expanduser(where)) / f'{name}-{_VERSION}'


def _number(name: str) -> int:
  return int.from_bytes(hashlib.blake2b(os.fsencode(name), digest_size=8).digest(), 'little')


def _recall(file: pathlib.Path, rows: np.ndarray) -> np.ndarray:
  """Fills in the `rows` that are remembered; returns [n] bool, True for these."""
  try:
    data = file.read_bytes()
  except OSError:
    data = b''
  known = np.zeros(0, _ROW)
  if hashlib.sha256(data[_DIGEST:]).digest() == data[:_DIGEST]:
    known = np.frombuffer(data[_DIGEST:], _ROW)
  if not len(known):
    return np.zeros(len(rows), bool)
  there = known[np.searchsorted(known['name'], rows['name']).clip(max=len(known) - 1)]
  same = np.logical_and.reduce([there[f] == rows[f] for f in _KEY])
  rows[same] = there[same]
  return same


def _keep(file: pathlib.Path, rows: np.ndarray) -> None:
  if not file.is_absolute():  # a user without a home, or a place in an object store
    return
  data = rows.tobytes()
  # A folder that cannot be written costs only the time of the next look.
  with contextlib.suppress(errors.GdistillError, OSError):
    storage.write_bytes(file, hashlib.sha256(data).digest() + data)
