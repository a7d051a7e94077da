"""SIGTERM and SIGINT: finish the step, save, leave with 42. A second signal leaves at once."""

import os
import signal
from collections.abc import Callable

from gdistill import errors


class Interrupt:
  """`with Interrupt() as stop:` and, in every long loop, `stop.check()` or `if stop.requested`.

  `watch` is asked at every look, and raises where going on would do harm: a lock that was lost.
  """

  def __init__(self, watch: Callable[[], None] = lambda: None):
    self._signal = ''
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
    if self._signal:
      os._exit(128 + number)
    self._signal = signal.Signals(number).name

  def check(self) -> None:
    """Raises Preempted, for places where what is finished is already on disk."""
    requested = self.requested
    if requested:
      raise errors.Preempted(f'{requested}: all is saved; repeat the command to go on')
