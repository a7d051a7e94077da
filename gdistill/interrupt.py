"""SIGTERM and SIGINT: finish the step, save, leave with 42. A second signal leaves at once."""

import os
import signal
import time
from collections.abc import Callable

from gdistill import errors

# The thread that the program's end does not wait for: a compile takes minutes.
COMPILING = 'gdistill-compile'

_ONE_SIGNAL = 1.0  # seconds: `timeout` and schedulers signal a process and then its group


class Interrupt:
  """`with Interrupt() as stop:` and, in every long loop, `stop.check()` or `if stop.requested`.

  `watch` is asked at every look, and raises where going on would do harm: a lock that was lost.
  """

  def __init__(self, watch: Callable[[], None] = lambda: None):
    self._signal, self._first = '', 0.0
    self._watch = watch

  def watch(self) -> None:
    """Raises where going on, or writing one thing more, would do harm."""
    self._watch()

  @property
  def requested(self) -> str:
    """The name of the signal that asked to stop, or ''."""
    self.watch()
    return self._signal

  def __enter__(self) -> 'Interrupt':
    self._before = {s: signal.signal(s, self._arrived) for s in (signal.SIGTERM, signal.SIGINT)}
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

  def check(self) -> None:
    """Raises Preempted, for places where what is finished is already on disk."""
    requested = self.requested
    if requested:
      raise errors.Preempted(f'{requested}: what is finished is saved; repeat the command to go on')
