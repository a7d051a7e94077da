"""Holds a workdir while several processes write to it: lock, signals, watchdog, time spent."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from gdistill import errors

# Seconds to wait for a new file of another process: NFS caches for up to a minute that a file does
# not exist.
_SHARED_WITHIN = 60


@contextlib.contextmanager
def hold(workdir: Any, seconds: Any, stall_seconds: float) -> Iterator[Any]:
  """Holds the lock of a workdir for all processes of a run; yields the Interrupt of this process.

  A watchdog ends the process after `stall_seconds` without a training step. At the end the seconds
  of each kind of work, `seconds`, are added to WORKDIR/time.json.
  """
  import jax

  from gdistill.devices import processes
  from gdistill.process import interrupt
  from gdistill.process import watchdog
  from gdistill.workdir import ledger

  writer = jax.process_index() == 0
  lock = ledger.Lock(workdir) if writer else contextlib.nullcontext()
  # Another process that ends may end this process too, within a heartbeat interval: the watchdog
  # writes the stacks earlier than that.
  early = processes.HEARTBEAT / 2 if jax.process_count() > 1 else 0.0
  dog = watchdog.Watchdog(workdir, stall_seconds, jax.process_index(), early)
  stop = interrupt.Interrupt(lock.check if writer else lambda: None, dog)
  with stop, lock, dog:
    try:
      _check_shared(workdir, lock.token if writer else '')
      yield stop
    finally:
      if seconds.spent and writer and not lock.lost:
        _account(workdir, seconds)
    # A signal during this barrier sets a flag only: process 0 gets the same signal, stops its work
    # and ends all processes.
    processes.barrier('the report is written', hours=48)


def _account(workdir, seconds) -> None:
  """Adds `seconds` to WORKDIR/time.json; a failure is a warning and does not fail the run."""
  from gdistill.process import progress
  from gdistill.process import timing

  try:
    timing.account(workdir, seconds, write=True)
  except errors.GdistillError as e:
    progress.say(f'warning: the seconds spent were not added to time.json: {e}')


def _check_shared(workdir, token: str) -> None:
  """Raises ConfigError in all processes unless every process sees the lock of process 0."""
  from gdistill.devices import processes
  from gdistill.workdir import ledger

  token, last = processes.of_first(token), time.monotonic() + _SHARED_WITHIN
  while (unseen := bool(token) and ledger.token(workdir) != token) and time.monotonic() < last:
    time.sleep(1)
  if processes.any_process(unseen):
    raise errors.ConfigError(
      f'--workdir={workdir} is not the same folder for all processes; name one that they share'
    )
