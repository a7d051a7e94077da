"""The lock that lets only one process write to a workdir, and the workdir's ledger of events."""

import contextlib
import json
import math
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Iterator

from absl import logging
from etils import epath

from gdistill import errors
from gdistill.workdir import storage

try:
  import fcntl
except ImportError:  # not a POSIX system, so `_alone` does nothing
  fcntl = None


LOCK = 'lock.json'  # name of the lock's file


@contextlib.contextmanager
def _alone(folder: epath.Path) -> Iterator[None]:
  """Context manager that lets only one process of this machine at a time run the `with` block.

  In an object store, the context manager does nothing.
  """
  if fcntl is None or not storage.is_local(folder):
    yield
    return
  fd = _opened(folder)
  try:
    with contextlib.suppress(OSError):  # ignored: some network disks have no file locks
      fcntl.flock(fd, fcntl.LOCK_EX)
    yield
  finally:
    os.close(fd)


def _opened(folder: epath.Path) -> int:
  """Makes the folder if it does not exist, and returns an open file descriptor of the folder."""
  for left in (2, 1, 0):
    try:
      folder.mkdir(parents=True, exist_ok=True)
      return os.open(folder, os.O_RDONLY)
    except OSError as e:
      # The folder is not found if another process that failed has just removed its empty folder.
      if not isinstance(e, FileNotFoundError) or not left:
        raise errors.CheckpointError(
          f'cannot make the folder {folder}: {errors.brief(e)}; {errors.write_advice(e)}'
        ) from e


def _machine() -> str | None:
  """Returns an id of the current boot of this machine or container; None if the system has no id.

  Process ids are unique within one boot of a machine or container.
  """
  try:
    with open('/proc/sys/kernel/random/boot_id') as f:
      return f'{f.read().strip()}/{os.readlink("/proc/self/ns/pid")}'
  except OSError:
    return None


def _started(pid: int) -> str | None:
  """Returns the start time of process `pid` in clock ticks since boot; None if `pid` has ended."""
  try:
    with open(f'/proc/{int(pid)}/stat') as f:
      # The fields are read after the last ')', because the program's name stands in parentheses
      # before the fields and may contain any character.
      fields = f.read().rpartition(')')[2].split()
  except (OSError, ValueError, TypeError):
    return None
  return None if fields[0] in 'ZX' else fields[19]


def token(workdir: epath.PathLike) -> str:
  """Returns the token in a workdir's lock.json; '' if there is no readable lock."""
  file = storage.path(workdir) / LOCK
  try:
    holder = storage.read_json(file) if storage.exists(file) else {}
  except errors.CheckpointError:  # a network disk may show half a file, so callers retry
    return ''
  return str(holder.get('token', '')) if isinstance(holder, dict) else ''


class Lock:
  """The lock of a folder: lock.json names the only process that may write to the folder.

  `name` is what errors call the folder, such as '--out=pictures'; by default 'workdir WORKDIR'.
  """

  def __init__(self, workdir: epath.PathLike, lease_seconds: float = 60, name: str = ''):
    self._file = storage.path(workdir) / LOCK
    self._name = name or f'workdir {os.fspath(self._file.parent)}'
    self._lease = lease_seconds
    self._lost = False
    self._stop = threading.Event()
    self._thread = threading.Thread(target=self._renew, name='gdistill-lock', daemon=True)
    self._me = {
      'host': socket.gethostname(),
      'pid': os.getpid(),
      'machine': _machine(),
      'started': _started(os.getpid()),
      'token': secrets.token_hex(16),
      'lease_seconds': lease_seconds,
    }

  def __enter__(self) -> 'Lock':
    with _alone(self._file.parent):
      holder = self._read()
      if holder is None:
        if not storage.write_once(self._file, self._beat()):
          self._refuse(self._read() or {})
      elif self._stale(holder):
        logging.warning('%s: taking over the stale lock of %s', self._file, _who(holder))
        storage.write_bytes(self._file, self._beat())
      else:
        self._refuse(holder)
    if not storage.is_local(self._file):
      # If several processes write lock.json at the same time, the last write wins, so this process
      # waits a moment for later writes.
      time.sleep(min(1.0, self._lease / 10))
    if not self._mine():
      self._refuse(self._read() or {})
    self._thread.start()
    return self

  def __exit__(self, *exc) -> None:
    self._stop.set()
    self._thread.join()
    try:
      with _alone(self._file.parent):
        if self._mine():
          storage.remove(self._file)
    # An error here must not hide the error that ended the run, and the lease will expire anyway.
    except Exception as e:
      logging.warning('%s: the lock could not be released: %s', self._file, e)

  @property
  def token(self) -> str:
    """A random id in lock.json, different for every lock."""
    return self._me['token']

  @property
  def lost(self) -> bool:
    """Whether a heartbeat found no lock.json, or the lock of another process.

    The lock writes a heartbeat to lock.json after each quarter of a lease.
    """
    return self._lost

  def check(self) -> None:
    """Raises ConfigError if the lock is lost, which may happen while a machine is suspended."""
    if self._lost:
      holder = self._read()
      raise errors.ConfigError(
        f'{self._file} was {f"taken over by {_who(holder)}" if holder else "removed"} while this '
        'run held the lock, so this run stopped without saving; repeat the command when no other '
        'process writes to this workdir'
      )

  def _renew(self) -> None:
    while not self._stop.wait(self._lease / 4):
      try:
        with _alone(self._file.parent):
          if not self._mine():
            self._lost = True
            logging.error('%s: the lock was lost to %s', self._file, _who(self._read() or {}))
            return
          storage.write_bytes(self._file, self._beat())
      except Exception as e:  # not raised, because the next heartbeat may succeed
        logging.warning('%s: a heartbeat could not be written: %s', self._file, e)

  def _beat(self) -> bytes:
    return storage.dumps({**self._me, 'heartbeat': time.time()}).encode()

  def _read(self) -> dict | None:
    try:
      text = storage.read_bytes(self._file)
    except errors.CheckpointError as e:
      if isinstance(e.__cause__, FileNotFoundError):
        return None
      raise  # an unreadable lock may be valid, so this process must not take it over
    try:
      holder = json.loads(text)
    except (ValueError, RecursionError):
      return {}
    return holder if isinstance(holder, dict) else {}

  def _mine(self) -> bool:
    return (self._read() or {}).get('token') == self._me['token']

  def _stale(self, holder: dict) -> bool:
    lease = holder.get('lease_seconds')  # seconds in which the holder writes four heartbeats
    if _age(holder) > (lease if isinstance(lease, (int, float)) else self._lease):
      return True
    if self._me['machine'] is None:  # without a machine id, a dead holder cannot be recognised
      return False
    here = all(holder.get(k) == self._me[k] for k in ('host', 'machine'))
    return here and _started(holder.get('pid')) != holder.get('started')

  def _refuse(self, holder: dict) -> None:
    raise errors.ConfigError(
      f'{self._name} is in use by {_who(holder)}; stop that process, wait until its lease '
      f'expires, or choose another {re.split("[ =]", self._name)[0]}'
    )


def _age(holder: dict) -> float:
  heartbeat = holder.get('heartbeat')
  return time.time() - heartbeat if isinstance(heartbeat, (int, float)) else math.inf


def _who(holder: dict) -> str:
  host, pid = holder.get('host', 'unknown'), holder.get('pid', 'unknown')
  return f'host {host}, pid {pid}, heartbeat {_age(holder):.0f} s ago'


_ENTRY = re.compile(r'(\d{8})-([A-Za-z0-9._-]{1,64})\.json')


def record(workdir: epath.PathLike, event: str, **fields) -> dict:
  """Adds an entry to the ledger, ledger/<number>-<event>.json, and returns the entry.

  Entries of the ledger are never changed. Raises ConfigError if `event` is not a valid name.
  """
  folder = storage.path(workdir) / 'ledger'
  if not _ENTRY.fullmatch(f'00000000-{event}.json'):
    raise errors.ConfigError(f'{event=} must be 1 to 64 characters of A-Z a-z 0-9 . _ -')
  with _alone(folder):
    taken = [int(m[1]) for m in map(_ENTRY.fullmatch, storage.list_dir(folder)) if m]
    number = max(taken, default=0)
    while True:
      number += 1
      entry = storage.jsonable({**fields, 'number': number, 'event': event, 'time': time.time()})
      if storage.write_once(folder / f'{number:08d}-{event}.json', storage.dumps(entry).encode()):
        return entry


def ledger(workdir: epath.PathLike) -> list[dict]:
  """Returns all entries of the ledger, oldest first; skips damaged entries with a warning."""
  folder = storage.path(workdir) / 'ledger'
  entries = []
  for name in filter(_ENTRY.fullmatch, storage.list_dir(folder)):
    try:
      entry = storage.read_json(folder / name)
      if not isinstance(entry, dict) or entry.get('number') != int(name[:8]):
        raise errors.CheckpointError(f'{folder / name} is damaged; restore the file from a copy')
      entries.append(entry)
    except errors.CheckpointError as e:
      logging.warning('ledger entry skipped: %s', e)
  return entries
