"""Stops a run on the first SIGTERM, SIGINT or SIGHUP: the run saves and exits with code 42.

A second signal ends the process immediately, without a save.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from gdistill import errors
from gdistill.process import watchdog

# Name of the thread that compiles programs before training needs the programs. The exit of this
# process does not wait for this thread, because a compile takes minutes.
COMPILING = 'gdistill-compile'

_LEAVING = b'\ngdistill: a second signal: exiting without saving; repeat the command to resume\n'
# Seconds within which several signals count as one signal, because `timeout` and schedulers signal
# a process and then also the process group.
_ONE_SIGNAL = 0.5


def _in_child() -> None:
  # ValueError is ignored: set_wakeup_fd raises ValueError outside the main thread.
  with contextlib.suppress(ValueError):
    signal.set_wakeup_fd(-1)


# A forked worker inherits the pipe: without this hook, the parent would read the worker's signals.
if hasattr(os, 'register_at_fork'):
  os.register_at_fork(after_in_child=_in_child)


class Interrupt:
  """A context that catches signals; loops in the context call `stop.check()` or read
  `stop.requested`.

  The context is entered by `with Interrupt() as stop:`. Each `stop.check()` or `stop.requested`
  calls `watch()`, which raises if the run must not continue, for example because another process
  took the lock. Each `stop.requested` or `stop.check()`, but not `stop.check(moved=False)`, also
  tells the watchdog `dog` that work was done.
  """

  def __init__(
    self, watch: Callable[[], None] = lambda: None, dog: watchdog.Watchdog | None = None
  ):
    self._signal = ''
    self._watch, self._dog = watch, dog
    self.steady = dog.steady if dog else contextlib.nullcontext
    self.patient = dog.patient if dog else contextlib.nullcontext

  def watch(self) -> None:
    """Calls the function `watch` of the constructor, which raises if this process must not write to
    the workdir any more.
    """
    self._watch()

  def moved(self) -> None:
    """Tells the watchdog that work was done; for code that uses neither `check` nor `requested`."""
    if self._dog is not None:
      self._dog.moved()

  @property
  def requested(self) -> str:
    """Returns the name of the signal that arrived, or ''; also tells the watchdog that work was
    done.
    """
    self.moved()
    return self._asked()

  def _asked(self) -> str:
    self.watch()
    return self._signal

  def __enter__(self) -> 'Interrupt':
    self._before = {}
    for s in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
      if signal.getsignal(s) is not signal.SIG_IGN:  # under nohup, SIGHUP must stay ignored
        self._before[s] = signal.signal(s, self._arrived)
    # Python runs a signal handler only between two bytecodes, and the main thread may be inside a
    # collective that never returns. So a second thread reads the signals from a pipe, into which
    # Python's C code writes them immediately.
    reader, self._pipe = os.pipe()
    os.set_blocking(self._pipe, False)
    self._before_pipe = signal.set_wakeup_fd(self._pipe, warn_on_full_buffer=False)
    name = 'gdistill-signals'
    threading.Thread(target=self._read, args=(reader,), name=name, daemon=True).start()
    return self

  def __exit__(self, *exc) -> None:
    for s, handler in self._before.items():
      signal.signal(s, handler)
    signal.set_wakeup_fd(self._before_pipe)
    os.close(self._pipe)

  def _arrived(self, number: int, frame: Any = None) -> None:
    self._signal = self._signal or signal.Signals(number).name

  def _read(self, reader: int) -> None:
    first = None
    with os.fdopen(reader, 'rb', buffering=0) as pipe:
      while byte := pipe.read(1):
        if byte[0] not in self._before:
          continue
        self._arrived(byte[0])
        first = first or time.monotonic()
        if time.monotonic() - first > _ONE_SIGNAL:
          os.write(2, _LEAVING)  # os.write, because the signal may have interrupted a print
          os._exit(128 + byte[0])

  def check(self, moved: bool = True) -> None:
    """Raises Preempted if a signal has arrived; call `check` only where all finished work is on
    disk.

    A loop that only waits for another process passes moved=False, so that the watchdog does not
    count waiting as work.
    """
    requested = self.requested if moved else self._asked()
    if requested:
      raise errors.Preempted(
        f'{requested}: all finished work is saved; repeat the command to resume'
      )
