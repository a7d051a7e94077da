"""SIGTERM, SIGINT, SIGHUP: finish the step, save, leave with 42. A second one leaves at once."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from gdistill import errors
from gdistill.process import watchdog

# The thread that the program's end does not wait for: a compile takes minutes.
COMPILING = 'gdistill-compile'

_LEAVING = b'\ngdistill: a second signal: leaving at once; repeat the command to go on\n'
_ONE_SIGNAL = 0.5  # seconds: `timeout` and schedulers signal a process and then its group


def _in_child() -> None:
  with contextlib.suppress(ValueError):  # not by the main thread: then it has no handlers either
    signal.set_wakeup_fd(-1)


if hasattr(os, 'register_at_fork'):  # or a forked worker would tell its parent of its own signals
  os.register_at_fork(after_in_child=_in_child)


class Interrupt:
  """`with Interrupt() as stop:` and, in every long loop, `stop.check()` or `if stop.requested`.

  `watch` is asked at every look, and raises where going on would do harm: a lock that was lost.
  Every look is a move to the watchdog `dog`: who looks is not stuck.
  """

  def __init__(
    self, watch: Callable[[], None] = lambda: None, dog: watchdog.Watchdog | None = None
  ):
    self._signal = ''
    self._watch, self._dog = watch, dog
    self.steady = dog.steady if dog else contextlib.nullcontext
    self.patient = dog.patient if dog else contextlib.nullcontext

  def watch(self) -> None:
    """Raises where going on, or writing one thing more, would do harm."""
    self._watch()

  def moved(self) -> None:
    """Something was done, where nobody looks."""
    if self._dog is not None:
      self._dog.moved()

  @property
  def requested(self) -> str:
    """The name of the signal that asked to stop, or ''."""
    self.moved()
    return self._asked()

  def _asked(self) -> str:
    self.watch()
    return self._signal

  def __enter__(self) -> 'Interrupt':
    self._before = {}
    for s in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
      if signal.getsignal(s) is not signal.SIG_IGN:  # nohup's terminal may close
        self._before[s] = signal.signal(s, self._arrived)
    # Python calls a handler between two of its own steps, and one of these may be a collective
    # that waits for ever. What its C code writes here at once is read by another thread.
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
          os.write(2, _LEAVING)  # a print may be what was interrupted
          os._exit(128 + byte[0])

  def check(self, moved: bool = True) -> None:
    """Raises Preempted, for places where what is finished is already on disk.

    Who only waits for somebody else has not `moved`.
    """
    requested = self.requested if moved else self._asked()
    if requested:
      raise errors.Preempted(f'{requested}: what is finished is saved; repeat the command to go on')
