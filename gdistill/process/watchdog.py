"""Where nothing moves for too long: the stacks of all threads in a file, then out with 134."""

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

_TIMES = 30  # a step may take so many times the median before it counts as stuck
_SLOW = 6  # what is no training step, a compile above all, may take so many times as long
_MEMORY, _KNOWN = 50, 5  # steps whose median counts, and how many it takes
_WRITING = 10.0  # seconds for the file, on a disk that may be what is stuck
EXIT_CODE = 134


class Watchdog:
  """`with Watchdog(folder) as dog:` and `dog.moved()` wherever something is done.

  Inside `steady` each call is one step: more than `seconds` without one, or 30 times the median
  step where that is longer, end the program; inside `patient`, and before five steps are known,
  six times `seconds` do; elsewhere, and with `seconds` = 0, nothing does. A process that was
  suspended counts the time that it ran. Before the end the stacks are in
  folder/stacks-<process>.txt, and no disk is waited for; they are there from `early` seconds on,
  for whoever is ended by somebody else, and gone when it moves. What holds Python's own lock for
  ever is not seen.
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
      self._forgive()  # of a run before this one
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
    """In here every call of `moved` ends a step like the one before."""
    self._steps.clear()
    return self._within(self._of_steps)

  def patient(self) -> contextlib.AbstractContextManager[None]:
    """In here things are done that take their time: a compile, a save."""
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
    if len(steps) < _KNOWN:  # the first ones wait for cold disks, and are not waited for
      return _SLOW * self._seconds
    return max(self._seconds, _TIMES * statistics.median(steps))

  def _watch(self) -> None:
    tick = min(1.0, self._seconds / 20, self._early / 4)
    written, last = -1, time.monotonic()
    while not self._end.wait(tick):
      now = time.monotonic()
      # A process that was suspended has missed time it did not have.
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
    text = f'{when}: nothing has moved for {still:.0f} s\n\n{_stacks()}'
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
    if self._moves != moves:  # while that was written
      return
    line = (
      f'gdistill: nothing has moved for {still:.0f} s; the stacks of all threads are {where}; '
      'start the same command again, and look at them if it recurs\n'
    )
    os.write(2, line.encode())  # a print may be what is stuck
    os._exit(EXIT_CODE)


def _forever() -> float:
  return math.inf


def _stacks() -> str:
  memory = getattr(os, 'memfd_create', None)  # a disk may be what is stuck, or full
  with os.fdopen(memory('stacks'), 'w+b') if memory else tempfile.TemporaryFile() as file:
    faulthandler.dump_traceback(file, all_threads=True)
    file.seek(0)
    return file.read().decode(errors='replace')


def _in_time(write: Callable[[], None]) -> bool:
  """Does it elsewhere, and waits for so long: the disk may be what is stuck. Whether it is done."""
  done = []

  def attempt():
    with contextlib.suppress(Exception):
      write()
      done.append(True)

  thread = threading.Thread(target=attempt, name='gdistill-stacks', daemon=True)
  thread.start()
  thread.join(_WRITING)
  return bool(done)
