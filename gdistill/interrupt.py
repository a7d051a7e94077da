"""SIGTERM and SIGINT: finish the step, save, leave with 42. A second signal leaves at once."""

import os
import signal

from gdistill import errors


class Interrupt:
  """`with Interrupt() as stop:` and, in every long loop, `stop.check()` or `if stop.requested`."""

  def __init__(self):
    self.requested = ''

  def __enter__(self) -> 'Interrupt':
    self._before = {s: signal.signal(s, self._arrived) for s in (signal.SIGTERM, signal.SIGINT)}
    return self

  def __exit__(self, *exc) -> None:
    for s, handler in self._before.items():
      signal.signal(s, handler)

  def _arrived(self, number, frame) -> None:
    if self.requested:
      os._exit(128 + number)
    self.requested = signal.Signals(number).name

  def check(self) -> None:
    """Raises Preempted, for places where what is finished is already on disk."""
    if self.requested:
      raise errors.Preempted(f'{self.requested}: all is saved; repeat the command to go on')
