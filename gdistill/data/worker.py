"""Blocks signals in worker processes that read data, and ends workers when their parent ends."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing import connection
from multiprocessing import process
from multiprocessing import resource_tracker


@contextlib.contextmanager
def unsignalled() -> Iterator[None]:
  """Blocks SIGTERM and SIGINT for the processes that start inside the `with` block.

  Worker processes would receive SIGTERM and SIGINT too, because a terminal and the command
  `timeout` send a signal to the whole process group. A worker process that died of SIGTERM or
  SIGINT would fail the training step that its parent is about to finish. The parent process
  receives its own pending signals when the `with` block ends.
  """
  # Python's resource tracker is started before the signals are blocked, because the start of the
  # resource tracker unblocks SIGTERM and SIGINT.
  resource_tracker.ensure_running()
  before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start() -> None:
  """Ends this worker process as soon as its parent process ends, even if the parent is killed.

  Every worker process must call `start` first.
  """
  parent = process.parent_process()
  if parent is not None:
    threading.Thread(target=_follow, args=(parent.sentinel,), daemon=True).start()


def _follow(sentinel: int) -> None:
  """Waits until the parent process ends, then exits this worker process immediately."""
  connection.wait([sentinel])
  os._exit(1)
