"""Reads and writes files of a workdir on local disk, gs:// and s3://, with the same functions."""

import contextlib
import dataclasses
import errno
import hashlib
import importlib.util
import json
import math
import os
import pathlib
import secrets
import shutil
import sys
import tempfile
from typing import Any, Literal

import numpy as np
from etils import epath
from etils.epath import backend

from gdistill import errors

_TEMPORARY = '.tmp-'
_STORES = {'gs': ('gcs', ('gcsfs', 'tensorflow')), 's3': ('s3', ('s3fs', 'tensorflow'))}


def path(p: epath.PathLike) -> epath.Path:
  """Returns the path as an epath.Path; a local path becomes absolute, because Orbax requires that.

  Raises ConfigError if the path is not local and does not begin with gs:// or s3://.
  """
  if is_local(p):
    return epath.Path(os.path.abspath(p))
  scheme = os.fspath(p).partition('://')[0]
  if scheme not in _STORES:
    raise errors.ConfigError(
      f'{p} must be a local path or begin with gs:// or s3://; give such a path'
    )
  return epath.Path(p)


def is_local(p: epath.PathLike) -> bool:
  """Returns whether the path is on local disk, not in an object store."""
  return '://' not in os.fspath(p)


def temporary_root() -> str:
  """Returns the folder for temporary files; raises ConfigError if no such folder can be written."""
  try:
    return tempfile.gettempdir()
  except FileNotFoundError as e:
    raise errors.ConfigError(
      'no folder for temporary files can be written, but the autoencoder and the text encoder need '
      'one; set the environment variable TMPDIR to a folder on a local disk'
    ) from e


def _fresh(p: epath.PathLike) -> epath.Path:
  """Returns the path after clearing fsspec's cache of listings, which other machines make stale."""
  p = path(p)
  if not is_local(p) and getattr(p, '_backend', None) is backend.fsspec_backend:
    backend.fsspec_backend.fs(p).invalidate_cache()
  return p


def _fsync(p: epath.PathLike) -> None:
  fd = os.open(p, os.O_RDONLY)
  try:
    os.fsync(fd)
  finally:
    os.close(fd)


def _put(p: epath.Path, data: bytes, publish: Literal['replace', 'link']) -> None:
  """Writes a local file atomically: a temporary file, fsync, then one rename or hard link."""
  p.parent.mkdir(parents=True, exist_ok=True)
  temporary = p.parent / f'{_TEMPORARY}{secrets.token_hex(8)}'
  try:
    with open(temporary, 'xb') as f:
      f.write(data)
      f.flush()
      os.fsync(f.fileno())
    getattr(os, publish)(temporary, p)
    _fsync(p.parent)
  finally:
    with contextlib.suppress(FileNotFoundError):
      os.unlink(temporary)


def write_bytes(p: epath.PathLike, data: bytes) -> None:
  """Writes a file atomically: a reader sees the old contents or all new contents, never a part."""
  p = path(p)
  try:
    if is_local(p):
      _put(p, data, 'replace')
    else:
      p.write_bytes(data)  # a single put is atomic in an object store
  except Exception as e:
    raise _cannot('write', p, e, errors.write_advice(e)) from e


def write_once(p: epath.PathLike, data: bytes) -> bool:
  """Creates the file and returns True; returns False, without writing, if the file exists."""
  p = path(p)
  try:
    if is_local(p):
      try:
        _put(p, data, 'link')
        return True
      except FileExistsError:
        if p.exists():
          return False
        raise  # a parent folder in the path is a file
      except OSError as e:
        if e.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
          raise
        # On a file system without hard links, the file is written below as in an object store.
    if exists(p):
      return False
  except Exception as e:
    raise _cannot('write', p, e, errors.write_advice(e)) from e
  write_bytes(p, data)
  return True


def read_bytes(p: epath.PathLike) -> bytes:
  """Returns the file's bytes; raises CheckpointError if the file cannot be read."""
  try:
    return _fresh(p).read_bytes()
  except Exception as e:
    raise _cannot('read', p, e, 'check the path and its permissions') from e


def read_text(p: epath.PathLike) -> str:
  """Returns the file's text; raises CheckpointError if the file cannot be read or is not UTF-8."""
  try:
    return read_bytes(p).decode()
  except UnicodeDecodeError as e:
    raise _cannot('read', p, e, 'restore the file from a copy') from e


def digest(p: epath.PathLike) -> str:
  """Returns the sha256 of the file in hex digits, without loading all of the file into memory."""
  try:
    with _fresh(p).open('rb') as f:
      return hashlib.file_digest(f, 'sha256').hexdigest()
  except Exception as e:
    raise _cannot('read', p, e, 'check the path and its permissions') from e


def dumps(value: Any) -> str:
  """Returns canonical JSON: sorted keys, indent 2, and null for infinite and NaN numbers."""
  return json.dumps(jsonable(value), sort_keys=True, indent=2, allow_nan=False) + '\n'


def jsonable(value: Any) -> Any:
  """Returns the value converted to JSON's types; raises TypeError if the value has no JSON form.

  Converts tuples, sets, dataclasses, paths and arrays; infinite and NaN floats become None.
  """
  if value is None or isinstance(value, (bool, int, str)):
    return value
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  if isinstance(value, dict):
    return {str(k): jsonable(v) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [jsonable(v) for v in value]
  if isinstance(value, (set, frozenset)):
    return sorted(jsonable(v) for v in value)
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    return {f.name: jsonable(getattr(value, f.name)) for f in dataclasses.fields(value)}
  if isinstance(value, os.PathLike):
    return os.fspath(value)
  if hasattr(value, '__array__'):
    return jsonable(np.asarray(value).tolist())
  raise TypeError(
    f'{value!r} of type {type(value).__name__} has no JSON form; save only plain values and arrays'
  )


def write_json(p: epath.PathLike, value: Any) -> None:
  """Writes the value as canonical JSON, atomically."""
  write_bytes(p, dumps(value).encode())


def read_json(p: epath.PathLike) -> Any:
  """Returns the parsed JSON file; raises CheckpointError if the file cannot be read or parsed."""
  text = read_text(p).removeprefix('\ufeff')  # an editor may have added a byte-order mark
  try:
    return json.loads(text)
  except (ValueError, RecursionError) as e:
    raise _cannot('parse', p, e, 'restore the file from a copy') from e


def check_writable(flag: str, p: epath.PathLike) -> None:
  """Raises ConfigError unless the folder is writable or could be created; writes nothing."""
  text = os.fspath(p)
  try:
    (os.path.abspath(text) if is_local(p) else text).encode()
  except UnicodeEncodeError as e:
    encoding = sys.getfilesystemencoding()
    utf8 = '' if encoding == 'utf-8' else ', or set the environment variable PYTHONUTF8=1'
    raise errors.ConfigError(
      f'{flag}={text!a} has bytes that are no characters in {encoding}, the encoding of file '
      f'names; choose a path without these bytes{utf8}'
    ) from e
  if '\0' in text or any(len(part.encode()) > 255 for part in text.split('/')):
    raise errors.ConfigError(
      f'{flag}={text[:80]!r} is not a valid path: a name in it is longer than 255 bytes, or it '
      'contains a null character; choose another path'
    )
  if not is_local(p):
    extra, modules = _STORES[os.fspath(path(p)).partition('://')[0]]
    if not any(importlib.util.find_spec(m) for m in modules):
      raise errors.ConfigError(
        f"{flag}={p} needs a package that is not installed; run: pip install -e '.[{extra}]'"
      )
    return
  here = pathlib.Path(text).absolute()
  while not os.path.lexists(here):
    here = here.parent
  if not here.is_dir():
    raise errors.ConfigError(f'{flag}={text}: {here} is not a folder; choose another {flag}')
  if not os.access(here, os.W_OK | os.X_OK):
    raise errors.ConfigError(f'{flag}={text}: {here} is not writable; choose another {flag}')


def free(p: epath.PathLike) -> int:
  """Returns the free bytes of the local disk on which the path lies; the path need not exist."""
  here = pathlib.Path(path(p))
  while not here.exists():
    here = here.parent
  return shutil.disk_usage(here).free


def exists(p: epath.PathLike) -> bool:
  """Returns whether the file or folder exists, without using fsspec's cache."""
  return _fresh(p).exists()


def list_dir(p: epath.PathLike) -> list[str]:
  """Returns the sorted names in the folder, without temporary files; [] if there is no folder."""
  try:
    # The empty name is left out below, because an object store may list the folder itself as an
    # entry with an empty name.
    names = {os.path.basename(os.fspath(c).rstrip('/')) for c in _fresh(p).iterdir()}
  except (FileNotFoundError, NotADirectoryError):
    return []
  itself = {''} if is_local(p) else {'', path(p).name}
  return sorted(n for n in names - itself if not n.startswith(_TEMPORARY))


def files(p: epath.PathLike) -> dict[str, int]:
  """Returns {'folder/name': size in bytes} of every file below the folder."""
  found = {}
  for name in list_dir(p):
    child = path(p) / name
    if child.is_dir():
      found |= {f'{name}/{k}': v for k, v in files(child).items()}
    else:
      found[name] = child.stat().length
  return found


def remove(p: epath.PathLike) -> None:
  """Removes the file; does nothing if there is no such file."""
  with contextlib.suppress(FileNotFoundError):
    path(p).unlink()


def remove_tree(p: epath.PathLike) -> None:
  """Removes the folder and everything in it; does nothing if there is no such folder."""
  p = _fresh(p)
  with contextlib.suppress(FileNotFoundError):
    shutil.rmtree(p) if is_local(p) else p.rmtree()


def sync_tree(p: epath.PathLike) -> None:
  """Calls fsync on all files in a local folder, because other libraries may write without fsync."""
  if is_local(p):
    for folder, _, names in os.walk(p):
      for name in names:
        _fsync(os.path.join(folder, name))
      _fsync(folder)


def _cannot(verb: str, p: epath.PathLike, e: Exception, remedy: str) -> errors.CheckpointError:
  reason = errors.brief(e)
  return errors.CheckpointError(f'cannot {verb} {os.fspath(p)}: {reason}; {remedy}')


def move_tree(source: epath.PathLike, target: epath.PathLike) -> None:
  """Renames a folder on local disk; a folder in an object store cannot be renamed."""
  os.rename(source, target)
  _fsync(path(target).parent)
