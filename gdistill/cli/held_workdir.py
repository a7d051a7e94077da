"""Holds the lock of a workdir during a run, handles signals and runs the watchdog."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from gdistill import errors

# Seconds to wait until a file that another process has written is visible: NFS caches for up to a
# minute that a file does not exist.
_SHARED_WITHIN = 60


@contextlib.contextmanager
def hold(workdir: Any, seconds: Any, stall_seconds: float) -> Iterator[Any]:
  """Holds the lock of a workdir for all processes of a run; yields an interrupt.Interrupt.

  The yielded Interrupt records the signals that ask this process to stop. A watchdog ends the
  process if work such as a training step stalls for `stall_seconds` or, if steps are slow, longer.
  When the context ends, `seconds`, the time spent on each kind of work, is added to
  WORKDIR/time.json.
  """
  import jax

  from gdistill.devices import processes
  from gdistill.process import interrupt
  from gdistill.process import watchdog
  from gdistill.workdir import ledger

  writer = jax.process_index() == 0
  lock = ledger.Lock(workdir) if writer else contextlib.nullcontext()
  # If another process dies, JAX may end this process within one heartbeat interval. The watchdog
  # writes the stacks of a stalled process after half an interval, so before JAX ends the process.
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
    # A signal does not end the wait at this barrier, and need not: process 0 gets the same signal,
    # stops the evaluation and ends all processes.
    processes.barrier('the report is written', hours=48)


def _account(workdir, seconds) -> None:
  """Adds `seconds`, the time spent on each kind of work, to WORKDIR/time.json.

  A failure to write time.json is printed as a warning and does not end the run.
  """
  from gdistill.process import progress
  from gdistill.process import timing

  try:
    timing.account(workdir, seconds, write=True)
  except errors.GdistillError as e:
    progress.say(f'warning: the seconds spent were not added to time.json: {e}')


def _check_shared(workdir, token: str) -> None:
  """Raises ConfigError in all processes unless each process can read process 0's lock."""
  from gdistill.devices import processes
  from gdistill.workdir import ledger

  token, last = processes.of_first(token), time.monotonic() + _SHARED_WITHIN
  while (unseen := bool(token) and ledger.token(workdir) != token) and time.monotonic() < last:
    time.sleep(1)
  if processes.any_process(unseen):
    raise errors.ConfigError(
      f'--workdir={workdir} is not the same folder for all processes; give a folder on a '
      'disk that all processes share'
    )
