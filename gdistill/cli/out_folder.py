"""Checks that --out is new, and keeps two commands from writing to one --out."""

import contextlib
import errno
import hashlib
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

from gdistill import errors


def check_new(out: Any, but_for_a_lock: bool = False) -> None:
  """Raises ConfigError unless --out does not exist yet or is an empty folder.

  With `but_for_a_lock`, a folder with nothing but the lock of a command, perhaps of a killed one,
  counts as empty: `held` takes such a folder over, or says who holds it.
  """
  from gdistill.workdir import ledger
  from gdistill.workdir import storage

  storage.check_writable('--out', out)
  if not storage.exists(out):
    return
  if not storage.path(out).is_dir():
    raise errors.ConfigError(f'--out={out} is not a folder; name a new or an empty folder')
  found = storage.list_dir(out)
  locked = but_for_a_lock and found == [ledger.LOCK] and ledger.token(out)
  if found and not locked:
    raise errors.ConfigError(f'--out={out} is not empty; name a new or an empty folder')


def check_new_local(out: str) -> None:
  """Raises ConfigError unless --out is on a local disk and is new or an empty folder."""
  if '://' in out:
    raise errors.ConfigError(
      f'--out={out} must be a local path; write to a local folder, then copy the folder'
    )
  check_new(out)


@contextlib.contextmanager
def held(out: Any, check: Callable[[], None]) -> Iterator[Any]:
  """Holds the lock of the folder --out while pictures are written there, one after the other.

  Yields an interrupt.Interrupt: its check() raises Preempted after a signal, and ConfigError if the
  lock was lost. `check()` raises if --out has files that this command must not touch; it is called
  before the lock is taken, so that nothing is written then, and again under the lock. Raises
  ConfigError if another command holds the lock. A lock that a killed command left is taken over. If
  nothing was written to a new folder, the folder is removed, with the folders made for it.
  """
  from gdistill.process import interrupt
  from gdistill.workdir import ledger
  from gdistill.workdir import storage

  check()
  absent = _absent(pathlib.Path(os.path.abspath(out))) if storage.is_local(out) else []
  lock = ledger.Lock(out, name=f'--out={out}')
  try:
    with interrupt.Interrupt(lock.check) as stop, lock:
      check()
      if storage.is_local(out):  # a killed command may have left a file of workdir.storage
        for left in pathlib.Path(out).rglob(f'.tmp-{"[0-9a-f]" * 16}'):
          left.unlink(missing_ok=True)
      yield stop
  finally:
    _remove_empty(absent)


@contextlib.contextmanager
def claimed(out: pathlib.Path) -> Iterator[pathlib.Path]:
  """Claims --out, a local file or folder, and yields a path beside it that does not exist yet.

  What the `with` block writes to the yielded path is deleted at the end, unless the block renames
  it. Raises ConfigError if a running command has claimed the same --out. What a killed command left
  beside --out is deleted.
  """
  from gdistill.workdir import ledger

  out = out.resolve()  # `out` may be a symbolic link; rename needs the file or folder itself
  name = os.fsencode(out.name)
  short = out.name if len(name) <= 240 else hashlib.sha256(name).hexdigest()  # 255 bytes at most
  folder = out.parent / f'.tmp-{short}.new'  # convert.files writes through .tmp-NAME
  new, absent = folder / 'new', _absent(folder)
  try:
    with ledger.Lock(folder, name=f'--out={out}'):
      # A killed command may have left `new`, and a temporary file of its lock.
      for left in (new, *folder.glob('.tmp-*')):
        _remove(left)
      try:
        yield new
      finally:
        _remove(new)
  finally:
    _remove_empty(absent or [folder])


def _absent(folder: pathlib.Path) -> list[pathlib.Path]:
  """Returns `folder` and the folders above it that do not exist, the deepest first."""
  found = []
  while not os.path.lexists(folder):
    found.append(folder)
    folder = folder.parent
  return found


def _remove_empty(folders: list[pathlib.Path]) -> None:
  """Removes the folders that are empty; a folder that another command has locked is not."""
  for folder in folders:
    with contextlib.suppress(OSError):
      folder.rmdir()


def claimed_file(out: Any) -> contextlib.AbstractContextManager:
  """Returns `claimed(out)` for a file --out; a context that claims nothing if `out` is not local.

  A file is written by one rename, so that two commands cannot mix their bytes: the claim tells the
  second command before its long work. `out` may be None, which claims nothing. Raises ConfigError
  if the folder of `out` is not writable.
  """
  from gdistill.workdir import storage

  if out is None or not storage.is_local(out):
    return contextlib.nullcontext()
  out = pathlib.Path(out)
  storage.check_writable('--out', out.absolute().parent)
  return claimed(out)


def _remove(path: pathlib.Path) -> None:
  if path.is_dir():
    shutil.rmtree(path, ignore_errors=True)
  else:
    path.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic(out: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a temporary folder, which is renamed to `out` at the end, or deleted after an error.

  Raises ConfigError if another command writes to `out`, or if `out` is not empty any more. Raises
  CheckpointError if the temporary folder or `out` cannot be written. Raises DataError if the `with`
  block fails to read a file outside the temporary folder and `out`.
  """
  out, temporary = out.resolve(), None
  try:
    with claimed(out) as temporary:
      check_new(out)  # again, because another command may have written `out` since the first check
      temporary.mkdir()
      yield temporary
      temporary.rename(out)  # replaces an empty folder, and fails if `out` has files
  except OSError as e:
    if e.errno in (errno.ENOTEMPTY, errno.EEXIST):
      raise errors.ConfigError(
        f'--out={out} was written by another program while this command ran; name a new folder'
      ) from e
    named = str(e.filename or out)
    if not named.startswith((str(temporary or out.parent), str(out))):
      raise errors.DataError(
        f'{named} cannot be read: {e.strerror}; check the disk and the permissions of the file'
      ) from e
    raise errors.CheckpointError(
      f'{out} cannot be written: {e.strerror}; {errors.write_advice(e)}'
    ) from e
