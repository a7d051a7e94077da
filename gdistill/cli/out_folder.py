"""Checks that the folder --out is new, and writes the folder completely or not at all."""

import contextlib
import pathlib
import secrets
import shutil
from collections.abc import Iterator
from typing import Any

from gdistill import errors


def check_new(out: Any) -> None:
  """Raises ConfigError unless --out does not exist yet or is an empty folder."""
  from gdistill.workdir import storage

  storage.check_writable('--out', out)
  if not storage.exists(out):
    return
  if not storage.path(out).is_dir():
    raise errors.ConfigError(f'--out={out} is not a folder; name a new or an empty folder')
  if storage.list_dir(out):
    raise errors.ConfigError(f'--out={out} is not empty; name a new or an empty folder')


def check_new_local(out: str) -> None:
  """Raises ConfigError unless --out is on a local disk and is new or an empty folder."""
  if '://' in out:
    raise errors.ConfigError(
      f'--out={out} must be a local path; write to a local folder, then copy the folder'
    )
  check_new(out)


@contextlib.contextmanager
def atomic(out: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a temporary folder, which is renamed to `out` at the end, or deleted after an error.

  Raises CheckpointError if the temporary folder or `out` cannot be written. Raises DataError if the
  `with` block fails to read a file outside the temporary folder and `out`.
  """
  out = out.resolve()  # `out` may be a symbolic link; rmdir and rename need the folder itself
  temporary = out.parent / f'.tmp-{out.name}-{secrets.token_hex(4)}'
  try:
    temporary.mkdir(parents=True)
    yield temporary
    if out.exists():
      out.rmdir()  # check_new has checked that `out` is empty
    temporary.rename(out)
  except OSError as e:
    named = str(e.filename or temporary)
    if not named.startswith((str(temporary), str(out))):
      raise errors.DataError(
        f'{named} cannot be read: {e.strerror}; check the disk and the permissions of the file'
      ) from e
    raise errors.CheckpointError(
      f'{out} cannot be written: {e.strerror}; {errors.write_advice(e)}'
    ) from e
  finally:
    shutil.rmtree(temporary, ignore_errors=True)
