"""Waits for events, so that a test gives the same answer on a machine that is busy."""

import time

SECONDS = 300.0  # no event takes that long: the limit only keeps a test from hanging


def until(found, child=None, meanwhile=lambda: None):
  """Waits until `found()` is true; fails if `child` ends before that.

  `meanwhile()` is called before each look.
  """
  give_up = time.monotonic() + SECONDS
  while True:
    over = child is not None and child.poll() is not None  # asked first: its last act may be it
    meanwhile()
    if found():
      return
    assert not over, f'the process ended with {child.returncode} before the event'
    assert time.monotonic() < give_up, f'the event did not come within {SECONDS} s'
    time.sleep(0.02)


def signalled(child, number):
  """Sends a signal until the process has ended.

  The first one alone may come too early: signals of half a second count as one.
  """
  until(lambda: child.poll() is not None, meanwhile=lambda: child.send_signal(number))
