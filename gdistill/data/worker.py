"""A process that reads: told to stop by its parent alone, which it never outlives."""

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
  """Processes started meanwhile get no SIGTERM or SIGINT, from their first moment on.

  A terminal and `timeout` signal the whole group; a worker that died of it would fail the step
  that its parent is about to finish. The parent gets its own when this is over.
  """
  resource_tracker.ensure_running()  # started by the first process, it would unblock them again
  before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start() -> None:
  """To be called in the worker: it ends with its parent, even with one that is killed."""
  parent = process.parent_process()
  if parent is not None:
    threading.Thread(target=_follow, args=(parent.sentinel,), daemon=True).start()


def _follow(sentinel: int) -> None:
  connection.wait([sentinel])
  os._exit(1)
