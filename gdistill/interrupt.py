"""SIGTERM, SIGINT, SIGHUP: finish the step, save, leave with 42. A second one leaves at once."""

import contextlib
import os
import signal
import time
from collections.abc import Callable

from gdistill import errors
from gdistill import watchdog

# The thread that the program's end does not wait for: a compile takes minutes.
COMPILING = 'gdistill-compile'

_ONE_SIGNAL = 0.5  # seconds: `timeout` and schedulers signal a process and then its group


class Interrupt:
  """`with Interrupt() as stop:` and, in every long loop, `stop.check()` or `if stop.requested`.

  `watch` is asked at every look, and raises where going on would do harm: a lock that was lost.
  Every look is a move to the watchdog `dog`: who looks is not stuck.
  """

  def __init__(
    self, watch: Callable[[], None] = lambda: None, dog: watchdog.Watchdog | None = None
  ):
    self._signal, self._first = '', 0.0
    self._watch, self._dog = watch, dog
    self.steady = dog.steady if dog else contextlib.nullcontext
    self.patient = dog.patient if dog else contextlib.nullcontext

  def watch(self) -> None:
    """Raises where going on, or writing one thing more, would do harm."""
    self._watch()

  @property
  def requested(self) -> str:
    """The name of the signal that asked to stop, or ''."""
    if self._dog is not None:
      self._dog.moved()
    return self._asked()

  def _asked(self) -> str:
    self.watch()
    return self._signal

  def __enter__(self) -> 'Interrupt':
    self._before = {}
    for s in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
      if signal.getsignal(s) is not signal.SIG_IGN:  # nohup's terminal may close
        self._before[s] = signal.signal(s, self._arrived)
    return self

  def __exit__(self, *exc) -> None:
    for s, handler in self._before.items():
      signal.signal(s, handler)

  def _arrived(self, number, frame) -> None:
    if not self._signal:
      self._signal, self._first = signal.Signals(number).name, time.monotonic()
    elif time.monotonic() - self._first > _ONE_SIGNAL:
      # os.write, because a print may be what was interrupted
      os.write(2, b'\ngdistill: a second signal: leaving at once; repeat the command to go on\n')
      os._exit(128 + number)

  def check(self, moved: bool = True) -> None:
    """Raises Preempted, for places where what is finished is already on disk.

    Who only waits for somebody else has not `moved`.
    """
    requested = self.requested if moved else self._asked()
    if requested:
      raise errors.Preempted(f'{requested}: what is finished is saved; repeat the command to go on')
