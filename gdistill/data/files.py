"""Files of prepared and encoded data: atomic writes, checksums, temporary names."""

import contextlib
import hashlib
import json
import os
import secrets
from typing import Any

from gdistill import errors

# Longer than the '.tmp-' of storage.py, whose temporary files belong to the lock of the folder.
TEMPORARY = '.tmp-prepare-'


def dumps(value: Any) -> bytes:
  """Returns JSON with sorted keys, so that equal values have equal bytes."""
  return (json.dumps(value, sort_keys=True, indent=1) + '\n').encode()


def sha256(file: str) -> str:
  with open(file, 'rb') as f:
    return hashlib.file_digest(f, 'sha256').hexdigest()


def write(file: str, data: bytes) -> None:
  """Writes a file by atomic rename: a reader sees the whole file or none of it."""
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
  """Renames a temporary file to its final name, after its bytes have reached the disk."""
  _fsync(temporary)
  os.replace(temporary, file)
  _fsync(os.path.dirname(file))


def unwritable(path: str, e: Exception) -> errors.DataError:
  """Returns the error for a file or folder that cannot be written, with advice for its cause."""
  reason = getattr(e, 'strerror', None) or errors.brief(e)
  return errors.DataError(f'{path} cannot be written: {reason}; {errors.write_advice(e)}')


def _fsync(path: str) -> None:
  fd = os.open(path, os.O_RDONLY)
  try:
    os.fsync(fd)
  finally:
    os.close(fd)
