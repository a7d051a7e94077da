"""Files of prepared data: whole or not there, and on the disk before they have their name."""

import contextlib
import hashlib
import json
import os
import secrets
from typing import Any

from gdistill import errors

TEMPORARY = '.tmp-prepare-'  # lock.json has '.tmp-' to itself


def dumps(value: Any) -> bytes:
  return (json.dumps(value, sort_keys=True, indent=1) + '\n').encode()


def sha256(file: str) -> str:
  with open(file, 'rb') as f:
    return hashlib.file_digest(f, 'sha256').hexdigest()


def write(file: str, data: bytes) -> None:
  """The whole file or none of it."""
  temporary = os.path.join(os.path.dirname(file), f'{TEMPORARY}{secrets.token_hex(8)}')
  try:
    with open(temporary, 'wb') as f:
      f.write(data)
    publish(temporary, file)
  except OSError as e:
    raise errors.DataError(f'{file} cannot be written: {e.strerror}; free space') from e
  finally:
    with contextlib.suppress(FileNotFoundError):
      os.unlink(temporary)


def publish(temporary: str, file: str) -> None:
  """Gives the file its name when its bytes are on the disk."""
  _fsync(temporary)
  os.replace(temporary, file)
  _fsync(os.path.dirname(file))


def _fsync(path: str) -> None:
  fd = os.open(path, os.O_RDONLY)
  try:
    os.fsync(fd)
  finally:
    os.close(fd)
