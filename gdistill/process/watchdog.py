"""A watchdog: ends a process that makes no progress, after writing the stacks of all threads."""

import collections
import contextlib
import faulthandler
import math
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

from gdistill.workdir import storage

_TIMES = 30  # a step that takes longer than this many times the median step counts as stuck
_SLOW = 6  # a compile or a save may take this many times the `seconds` of Watchdog
_MEMORY, _KNOWN = 50, 5  # the median step time is of the last 50 steps, and needs 5 steps
_WRITING = 10.0  # longest wait, in seconds, for writing the stacks: the disk may hang
EXIT_CODE = 134


class Watchdog:
  """A thread that ends the process if `moved` is not called for longer than a time limit.

  Enter `with Watchdog(folder, seconds) as dog:`, and call `dog.moved()` wherever work was done. In
  the context `steady()` each call of `moved` is one training step, and the time limit is `seconds`
  or 30 times the median step, whichever is longer. In the context `patient()`, and in `steady()`
  before five steps were timed, the time limit is six times `seconds`. Outside `steady()` and
  `patient()`, and with seconds=0, there is no time limit. Time in which the process was suspended
  does not count towards the limit.

  The watchdog writes the stacks of all threads to folder/stacks-<process>.txt before it ends the
  process, and waits at most ten seconds for the disk. The stacks are first written after `early`
  seconds without progress, because another process of the run may end this process before the time
  limit; the file of stacks is removed when work continues. A process that the watchdog ends has
  exit code 134. The watchdog cannot act while C code holds Python's global interpreter lock.
  """

  def __init__(
    self, folder: storage.epath.PathLike, seconds: float, process: int = 0, early: float = 0.0
  ):
    self._file = storage.path(folder) / f'stacks-{process}.txt'
    self._seconds, self._early = seconds, early or seconds / 2
    self._limit: Callable[[], float] = _forever
    self._steps: collections.deque[float] = collections.deque(maxlen=_MEMORY)
    self._still, self._moves = 0.0, 0
    self._lock, self._end = threading.Lock(), threading.Event()
    self._thread = threading.Thread(target=self._watch, name='gdistill-watchdog', daemon=True)

  def __enter__(self) -> 'Watchdog':
    if self._seconds:
      self._forgive()  # removes the file of stacks that an earlier run left
      self._thread.start()
    return self

  def __exit__(self, *exc) -> None:
    self._end.set()
    if self._seconds:
      self._thread.join()
      self._forgive()

  def moved(self) -> None:
    with self._lock:
      self._steps.append(self._still)
      self._still, self._moves = 0.0, self._moves + 1

  def steady(self) -> contextlib.AbstractContextManager[None]:
    """Returns a context in which every call of `moved` ends one training step."""
    self._steps.clear()
    return self._within(self._of_steps)

  def patient(self) -> contextlib.AbstractContextManager[None]:
    """Returns a context for slow work, such as a compile or a save, with a time limit of six times
    `seconds`.
    """
    return self._within(lambda: _SLOW * self._seconds)

  @contextlib.contextmanager
  def _within(self, limit: Callable[[], float]) -> Iterator[None]:
    before = self._limit
    self._limit = limit
    self._forget()
    try:
      yield
    finally:
      self._limit = before
      self._forget()

  def _forget(self) -> None:
    with self._lock:
      self._still, self._moves = 0.0, self._moves + 1

  def _of_steps(self) -> float:
    steps = list(self._steps)
    if len(steps) < _KNOWN:  # the first steps are not typical, for example because disks are cold
      return _SLOW * self._seconds
    return max(self._seconds, _TIMES * statistics.median(steps))

  def _watch(self) -> None:
    tick = min(1.0, self._seconds / 20, self._early / 4)
    written, last = -1, time.monotonic()
    while not self._end.wait(tick):
      now = time.monotonic()
      # A gap longer than two ticks means a suspended process; only two ticks of the gap count.
      passed, last = min(now - last, 2 * tick), now
      with self._lock:
        self._still += passed
        still, moves, limit = self._still, self._moves, self._limit()
      if written not in (-1, moves):
        _in_time(self._forgive)
        written = -1
      if still > self._early and limit < math.inf and written == -1:
        written = moves
        _in_time(lambda still=still: self._write(still))
      if still > limit:
        self._leave(still, moves)

  def _write(self, still: float) -> None:
    when = time.strftime('%Y-%m-%d %H:%M:%S')
    text = f'{when}: no progress for {still:.0f} s\n\n{_stacks()}'
    storage.write_bytes(self._file, text.encode())

  def _forgive(self) -> None:
    with contextlib.suppress(Exception):
      if storage.exists(self._file):
        storage.remove(self._file)

  def _leave(self, still: float, moves: int) -> None:
    where = f'in {os.fspath(self._file)}'
    if not _in_time(lambda: self._write(still)):
      where = 'above'
      faulthandler.dump_traceback(2, all_threads=True)
    if self._moves != moves:  # work continued while the stacks were written: do not exit
      return
    line = (
      f'gdistill: no progress for {still:.0f} s, so this process ends; the stacks of all threads '
      f'are {where}; repeat the command, and read the stacks if this happens again\n'
    )
    os.write(2, line.encode())  # os.write, because print may hang
    os._exit(EXIT_CODE)


def _forever() -> float:
  return math.inf


def _stacks() -> str:
  memory = getattr(os, 'memfd_create', None)  # the stacks go to memory: a disk may hang or be full
  with os.fdopen(memory('stacks'), 'w+b') if memory else tempfile.TemporaryFile() as file:
    faulthandler.dump_traceback(file, all_threads=True)
    file.seek(0)
    return file.read().decode(errors='replace')


def _in_time(write: Callable[[], None]) -> bool:
  """Calls `write` in a thread and returns whether `write` finished within `_WRITING` seconds.

  `write` is called in a thread because the disk may hang.
  """
  done = []

  def attempt():
    with contextlib.suppress(Exception):
      write()
      done.append(True)

  thread = threading.Thread(target=attempt, name='gdistill-stacks', daemon=True)
  thread.start()
  thread.join(_WRITING)
  return bool(done)
