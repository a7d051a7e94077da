"""Writes files of prepared pictures and of latents by atomic rename; hashes files with sha256."""

import contextlib
import hashlib
import json
import os
import secrets
from typing import Any

from gdistill import errors

# Prefix of the temporary files of prepared pictures and latents. Files with this prefix are removed
# after a crash, so the prefix differs from the prefix '.tmp-' of storage.py, whose temporary files
# may belong to the lock of the folder.
TEMPORARY = '.tmp-prepare-'


def dumps(value: Any) -> bytes:
  """Returns `value` as JSON bytes with sorted keys, so that equal values have equal bytes."""
  return (json.dumps(value, sort_keys=True, indent=1) + '\n').encode()


def sha256(file: str) -> str:
  with open(file, 'rb') as f:
    return hashlib.file_digest(f, 'sha256').hexdigest()


def write(file: str, data: bytes) -> None:
  """Writes `data` to `file` by atomic rename, so that a reader never sees half a file."""
  temporary = os.path.join(os.path.dirname(file), f'{TEMPORARY}{secrets.token_hex(8)}')
  try:
    with open(temporary, 'wb') as f:
      f.write(data)
    publish(temporary, file)
  except OSError as e:
    raise unwritable(file, e) from e
  finally:
    with contextlib.suppress(FileNotFoundError):
      os.unlink(temporary)


def publish(temporary: str, file: str) -> None:
  """Flushes the bytes of the file `temporary` to the disk, then renames `temporary` to `file`."""
  _fsync(temporary)
  os.replace(temporary, file)
  _fsync(os.path.dirname(file))


def unwritable(path: str, e: Exception) -> errors.DataError:
  """Returns the DataError for an unwritable `path`, with advice that fits the exception `e`."""
  reason = getattr(e, 'strerror', None) or errors.brief(e)
  return errors.DataError(f'{path} cannot be written: {reason}; {errors.write_advice(e)}')


def _fsync(path: str) -> None:
  fd = os.open(path, os.O_RDONLY)
  try:
    os.fsync(fd)
  finally:
    os.close(fd)
