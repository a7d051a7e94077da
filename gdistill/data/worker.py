"""Worker processes that read data: only the parent stops them, and they never outlive it."""

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
  """Blocks SIGTERM and SIGINT for the processes that start in this context.

  A terminal and `timeout` send a signal to the whole process group. A worker that died of such a
  signal would fail the step that its parent is about to finish. The parent receives its own
  signals when the context ends.
  """
  # Starting a first process would start this tracker, which unblocks the signals again.
  resource_tracker.ensure_running()
  before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start() -> None:
  """Ends this worker process as soon as its parent ends, even if the parent is killed.

  Call it first in every worker.
  """
  parent = process.parent_process()
  if parent is not None:
    threading.Thread(target=_follow, args=(parent.sentinel,), daemon=True).start()


def _follow(sentinel: int) -> None:
  """Waits for the end of the parent process and exits immediately."""
  connection.wait([sentinel])
  os._exit(1)
