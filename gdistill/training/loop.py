"""The only training loop: a compiled step, checkpoints, logs, preemption. It knows no diffusion."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import numpy as jnp

from gdistill import errors
from gdistill.devices import processes
from gdistill.process import interrupt
from gdistill.process import progress
from gdistill.process import timing
from gdistill.recipe import settings as recipes
from gdistill.training import log as training_log
from gdistill.workdir import state as states
from gdistill.workdir import step_checkpoints
from gdistill.workdir import storage

_RESTORING = 0.25  # hours that one process waits for the others to have read their checkpoint
_ASK_EVERY = 10  # updates; machines that are taken away give half a minute's notice


def fit(
  folder: storage.epath.Path,
  fresh: Callable[[], states.TrainState],
  like: states.TrainState,
  run: Callable,
  teacher: Any,
  batches: Callable[[int, int], Any],
  given: dict,
  steps: int,
  settings: recipes.Train,
  substeps: int,
  stop: interrupt.Interrupt,
  seconds: timing.Seconds,
) -> states.TrainState:
  """Trains one round from `fresh()`, or from its newest checkpoint, to `steps` updates.

  `like` is the state's shapes with their shardings.

  `run(state, teacher, batches(step, substeps), given)` is the compiled step. Raises Preempted
  after saving when asked to stop, NumericsError when too many updates were skipped.
  """
  steps_folder = folder / 'steps'
  with seconds('restore'):
    shardings = jax.tree.map(lambda a: a.sharding, like)
    found = step_checkpoints.restore_latest(steps_folder, like, shardings)
    # Its own buffers: the step donates them. Nothing else may hold on to a state, which is large.
    step, state = (0, fresh()) if found is None else (found[0], jax.tree.map(jnp.copy, found[1]))
    del found
    stop.moved()
    processes.barrier(f'{folder.name} begins at {step}', hours=_RESTORING)
  log, watch = training_log.Log(folder, step), Finite(settings, states.names(state.params))

  def check(metrics, step):
    watch.check(jax.device_get(metrics), step)

  def save(step):
    stop.watch()
    with seconds('save'), stop.patient():
      saver.save(step, state)
      log.flush()

  metrics, since, start = None, step, time.monotonic()
  with (
    step_checkpoints.Saver(steps_folder, settings.max_to_keep, stop.watch) as saver,
    progress.Progress(folder.name, steps, step) as bar,
    stop.steady(),
  ):
    while step < steps:
      saver.check()
      with seconds('data'):
        batch = batches(step, substeps)
      with seconds('productive'):
        before, (state, metrics) = metrics, run(state, teacher, batch, given)
        step += substeps
        # At most one step ahead of the devices: virtual CPU devices die of a longer queue.
        if before is not None:
          check(before, step - substeps)
      if step % settings.log_every == 0 or step == steps:
        with seconds('productive'):
          row = {k: float(v) for k, v in jax.device_get(metrics).items() if k != 'broken'}
        now = time.monotonic()
        row['updates_per_second'] = (step - since) / max(now - start, 1e-9)
        since, start = step, now
        log.add(step, row)
        bar.update(step, loss=row['loss'], lr=row['lr'])
      else:
        bar.update(step)
      if step < steps and _asked_to_stop(stop, step, settings):
        check(metrics, step)
        save(step)
        with seconds('save'), stop.patient():
          saver.wait()
        raise errors.Preempted(
          f'{stop.requested or "a signal"}: {folder.name} is saved at step {step}; '
          'repeat the command to go on'
        )
      if step % settings.checkpoint_every == 0 and step < steps:
        check(metrics, step)
        save(step)
    with seconds('save'), stop.patient():
      saver.wait()
  if metrics is not None:
    check(metrics, step)
  log.flush()
  return state


def _asked_to_stop(stop: interrupt.Interrupt, step: int, settings: recipes.Train) -> bool:
  """Whether any process was signalled; several ask each other every ten updates or more."""
  if jax.process_count() == 1:
    return bool(stop.requested)
  stop.moved()
  every = settings.substeps * -(-_ASK_EVERY // settings.substeps)
  return step % every == 0 and processes.any_process(bool(stop.requested))


class Finite:
  """Ends a run whose updates are not finite: too many in a row, or too large a share of all."""

  def __init__(self, settings: recipes.Train, names: Sequence[str]):
    self._settings, self._names = settings, names
    self._first = ''

  def check(self, metrics: dict, step: int) -> None:
    """NumericsError, with the first leaf whose gradient broke last, after `step` updates."""
    settings, broken = self._settings, int(metrics['broken'])
    if broken >= 0:
      loss = float(metrics['loss'])
      self._first = f' (the first leaf is {self._names[broken]!r}, at a loss of {loss:g})'
    in_a_row, skipped = int(metrics['skipped_in_a_row']), int(metrics['skipped'])
    many = skipped >= settings.max_skipped_in_a_row  # a share of the first few steps says little
    share = 100 * skipped > settings.max_skipped_percent * step
    if in_a_row >= settings.max_skipped_in_a_row or (many and share):
      raise errors.NumericsError(
        f'{skipped} of {step} updates were not finite, the last {in_a_row} in a row{self._first}; '
        'lower the learning rate, or look for the first broken value with JAX_DEBUG_NANS=1'
      )
