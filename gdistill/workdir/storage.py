"""Every read and write of a workdir, by the same code on local disk, gs:// and s3://."""

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
from typing import Any, Literal

import numpy as np
from etils import epath
from etils.epath import backend

from gdistill import errors

_TEMPORARY = '.tmp-'
_STORES = {'gs': ('gcs', ('gcsfs', 'tensorflow')), 's3': ('s3', ('s3fs', 'tensorflow'))}


def path(p: epath.PathLike) -> epath.Path:
  """The one way to name a place in a workdir; local ones become absolute, as Orbax wants them."""
  if is_local(p):
    return epath.Path(os.path.abspath(p))
  scheme = os.fspath(p).partition('://')[0]
  if scheme not in _STORES:
    raise errors.ConfigError(f'{p} must be a local path, gs:// or s3://')
  return epath.Path(p)


def is_local(p: epath.PathLike) -> bool:
  return '://' not in os.fspath(p)


def _fresh(p: epath.PathLike) -> epath.Path:
  """The path, without what fsspec remembers of it: other machines write there too."""
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
  """On local disk: write beside the target, fsync, then make it visible in one system call."""
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
  """Replaces the whole file or leaves it as it was; a reader never sees a part of it."""
  p = path(p)
  try:
    if is_local(p):
      _put(p, data, 'replace')
    else:
      p.write_bytes(data)  # one put, which object stores make visible whole or not at all
  except Exception as e:
    raise _cannot('write', p, e, 'free space or mend its permissions') from e


def write_once(p: epath.PathLike, data: bytes) -> bool:
  """Creates the file; False, and nothing changed, where there is one already."""
  p = path(p)
  try:
    if is_local(p):
      try:
        _put(p, data, 'link')
        return True
      except FileExistsError:
        if p.exists():
          return False
        raise  # a file stands where the folder should be
      except OSError as e:
        if e.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
          raise  # those three: a file system without hard links, served like an object store
    if exists(p):
      return False
  except Exception as e:
    raise _cannot('write', p, e, 'free space or mend its permissions') from e
  write_bytes(p, data)
  return True


def read_bytes(p: epath.PathLike) -> bytes:
  try:
    return _fresh(p).read_bytes()
  except Exception as e:
    raise _cannot('read', p, e, 'check the path and its permissions') from e


def read_text(p: epath.PathLike) -> str:
  try:
    return read_bytes(p).decode()
  except UnicodeDecodeError as e:
    raise _cannot('read', p, e, 'restore the file from a copy') from e


def digest(p: epath.PathLike) -> str:
  """sha256 of the file, read in pieces."""
  try:
    with _fresh(p).open('rb') as f:
      return hashlib.file_digest(f, 'sha256').hexdigest()
  except Exception as e:
    raise _cannot('read', p, e, 'check the path and its permissions') from e


def dumps(value: Any) -> str:
  """Canonical JSON: sorted keys, two spaces, and null for the numbers JSON does not have."""
  return json.dumps(jsonable(value), sort_keys=True, indent=2, allow_nan=False) + '\n'


def jsonable(value: Any) -> Any:
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
  raise TypeError(f'{value!r} of type {type(value).__name__} has no JSON form')


def write_json(p: epath.PathLike, value: Any) -> None:
  write_bytes(p, dumps(value).encode())


def read_json(p: epath.PathLike) -> Any:
  text = read_text(p)
  try:
    return json.loads(text)
  except (ValueError, RecursionError) as e:
    raise _cannot('parse', p, e, 'restore the file from a copy') from e


def check_writable(flag: str, p: epath.PathLike) -> None:
  """ConfigError unless the folder is there and writable, or could be made; writes nothing."""
  text = os.fspath(p)
  if '\0' in text or any(len(part.encode()) > 255 for part in text.split('/')):
    raise errors.ConfigError(f'{flag}={text[:80]!r} is no name a disk can hold; choose another')
  if not is_local(p):
    extra, modules = _STORES[os.fspath(path(p)).partition('://')[0]]
    if not any(importlib.util.find_spec(m) for m in modules):
      raise errors.ConfigError(f"{flag}={p} needs another package; pip install -e '.[{extra}]'")
    return
  here = pathlib.Path(text).absolute()
  while not os.path.lexists(here):
    here = here.parent
  if not here.is_dir():
    raise errors.ConfigError(f'{flag}={text}: {here} is not a folder; choose another place')
  if not os.access(here, os.W_OK | os.X_OK):
    raise errors.ConfigError(f'{flag}={text}: {here} is not writable; choose another place')


def free(p: epath.PathLike) -> int:
  """Bytes that may still be written on the local disk where the path is, or will be."""
  here = pathlib.Path(path(p))
  while not here.exists():
    here = here.parent
  return shutil.disk_usage(here).free


def exists(p: epath.PathLike) -> bool:
  return _fresh(p).exists()


def list_dir(p: epath.PathLike) -> list[str]:
  """Sorted names in the folder, without unfinished writes; none where there is no folder."""
  try:
    # An object store may list the folder itself, as an empty name.
    names = {os.path.basename(os.fspath(c).rstrip('/')) for c in _fresh(p).iterdir()}
  except (FileNotFoundError, NotADirectoryError):
    return []
  itself = {''} if is_local(p) else {'', path(p).name}
  return sorted(n for n in names - itself if not n.startswith(_TEMPORARY))


def files(p: epath.PathLike) -> dict[str, int]:
  """{'folder/name': bytes} of every file below the folder."""
  found = {}
  for name in list_dir(p):
    child = path(p) / name
    if child.is_dir():
      found |= {f'{name}/{k}': v for k, v in files(child).items()}
    else:
      found[name] = child.stat().length
  return found


def remove(p: epath.PathLike) -> None:
  with contextlib.suppress(FileNotFoundError):
    path(p).unlink()


def remove_tree(p: epath.PathLike) -> None:
  p = _fresh(p)
  with contextlib.suppress(FileNotFoundError):
    shutil.rmtree(p) if is_local(p) else p.rmtree()


def sync_tree(p: epath.PathLike) -> None:
  """Local disk: what other libraries wrote below the folder is on the disk after this."""
  if is_local(p):
    for folder, _, names in os.walk(p):
      for name in names:
        _fsync(os.path.join(folder, name))
      _fsync(folder)


def _cannot(verb: str, p: epath.PathLike, e: Exception, remedy: str) -> errors.CheckpointError:
  reason = errors.brief(e)
  return errors.CheckpointError(f'cannot {verb} {os.fspath(p)}: {reason}; {remedy}')


def move_tree(source: epath.PathLike, target: epath.PathLike) -> None:
  """Local disk only: object stores cannot rename."""
  os.rename(source, target)
  _fsync(path(target).parent)
