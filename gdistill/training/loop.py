"""The only training loop: calls a compiled step, saves checkpoints, logs, and stops on a signal."""

import dataclasses
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

# Hours that a process waits until all processes have restored the training state.
_RESTORING = 0.25
# Number of updates between two exchanges, in which each process tells the other processes whether
# the process got a signal to stop. An exchange takes time, so exchanges are not made every update;
# a preempted machine has only thirty seconds to save, so exchanges must not be rare.
_ASK_EVERY = 10


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
  """One round to train: first state, batches, compiled step and number of updates."""

  folder: storage.epath.Path
  fresh: Callable[[], states.TrainState]  # makes the round's state before the first update
  like: states.TrainState  # the train state's shapes and shardings
  step: Callable  # compiled (state, teacher, batches, given) -> (state, metrics); donates the state
  teacher: Any  # the teacher's parameters; None while a teacher is trained
  batches: Callable[[int, int], Any]  # (first update, number of updates) -> device arrays
  given: dict  # the round's lr, updates, num_steps and random key, from `step.numbers`
  steps: int  # number of updates in the round
  substeps: int  # number of updates in one call of `step`


def fit(
  task: Task, settings: recipes.Train, stop: interrupt.Interrupt, seconds: timing.Seconds
) -> states.TrainState:
  """Trains a round to the end, from the newest checkpoint or from the first state.

  If a signal asks any process to stop, saves a checkpoint and raises Preempted. Raises
  NumericsError if too many updates were skipped.
  """
  step, state = _start(task, stop, seconds)
  with (
    step_checkpoints.Saver(task.folder / 'steps', settings.max_to_keep, stop.watch) as saver,
    progress.Progress(task.folder.name, task.steps, step) as bar,
    stop.steady(),
  ):
    going = _Going(task, settings, step, state, saver, stop, seconds)
    del state  # a second reference would keep the donated buffers of the first state alive
    while going.step < task.steps:
      saver.check()
      going.advance()
      bar.update(going.step, **going.report())
      if going.step < task.steps and _asked_to_stop(stop, going.step, settings):
        going.save()
        going.wait()
        raise errors.Preempted(
          f'{stop.requested or "a signal"}: {task.folder.name} was saved at step {going.step}; '
          'repeat the command to resume'
        )
      if going.step % settings.checkpoint_every == 0 and going.step < task.steps:
        going.save()
    going.wait()
  return going.finish()


def _start(
  task: Task, stop: interrupt.Interrupt, seconds: timing.Seconds
) -> tuple[int, states.TrainState]:
  """Returns (step, state) of the newest checkpoint, or of the first state if there is none."""
  with seconds('restore'):
    shardings = jax.tree.map(lambda a: a.sharding, task.like)
    found = step_checkpoints.restore_latest(task.folder / 'steps', task.like, shardings)
    # The restored state is copied, because the train step donates the buffers of the state.
    step, state = (
      (0, task.fresh()) if found is None else (found[0], jax.tree.map(jnp.copy, found[1]))
    )
    del found
    stop.moved()
    processes.barrier(f'{task.folder.name} begins at {step}', hours=_RESTORING)
  return step, state


class _Going:
  """A round in training: the current step and state, the log, and the checks of the metrics."""

  def __init__(self, task, settings, step, state, saver, stop, seconds):
    self.step = step
    self._task, self._settings, self._state = task, settings, state
    self._saver, self._stop, self._seconds = saver, stop, seconds
    self._log = training_log.Log(task.folder, step)
    self._finite = Finite(settings, states.names(state.params))
    self._metrics = None
    self._reported, self._since = step, time.monotonic()

  def advance(self) -> None:
    """Dispatches a call of the train step, and checks the metrics of the previous call."""
    task, before = self._task, self._metrics
    with self._seconds('data'):
      batch = task.batches(self.step, task.substeps)
    with self._seconds('productive'):
      self._state, self._metrics = task.step(self._state, task.teacher, batch, task.given)
      self.step += task.substeps
      # The check waits for the previous call of the step, so that the queue of the devices holds at
      # most one more call: virtual CPU devices fail with longer queues.
      if before is not None:
        self._check(before, self.step - task.substeps)

  def report(self) -> dict[str, float]:
    """Logs the metrics every `log_every` updates, and returns loss and lr for the progress line."""
    if self.step % self._settings.log_every and self.step != self._task.steps:
      return {}
    with self._seconds('productive'):
      row = {k: float(v) for k, v in jax.device_get(self._metrics).items() if k != 'broken'}
    now = time.monotonic()
    row['updates_per_second'] = (self.step - self._reported) / max(now - self._since, 1e-9)
    self._reported, self._since = self.step, now
    self._log.add(self.step, row)
    return {'loss': row['loss'], 'lr': row['lr']}

  def save(self) -> None:
    """Saves a checkpoint in the background, after a check that the newest updates were finite."""
    self._check(self._metrics, self.step)
    self._stop.watch()
    with self._seconds('save'), self._stop.patient():
      self._saver.save(self.step, self._state)
      self._log.flush()

  def wait(self) -> None:
    """Waits until the checkpoint that is saved in the background is complete."""
    with self._seconds('save'), self._stop.patient():
      self._saver.wait()

  def finish(self) -> states.TrainState:
    """Returns the state at the end of the round, after a check of the last metrics."""
    if self._metrics is not None:
      self._check(self._metrics, self.step)
    self._log.flush()
    return self._state

  def _check(self, metrics: dict, step: int) -> None:
    self._finite.check(jax.device_get(metrics), step)


def _asked_to_stop(stop: interrupt.Interrupt, step: int, settings: recipes.Train) -> bool:
  """Tells whether any process got a signal to stop.

  Several processes exchange whether a signal came only once in ten or more updates.
  """
  if jax.process_count() == 1:
    return bool(stop.requested)
  stop.moved()
  every = settings.substeps * -(-_ASK_EVERY // settings.substeps)
  return step % every == 0 and processes.any_process(bool(stop.requested))


class Finite:
  """Ends a run if too many updates, in a row or as a share of all updates, were not finite."""

  def __init__(self, settings: recipes.Train, names: Sequence[str]):
    self._settings, self._names = settings, names
    self._first = ''

  def check(self, metrics: dict, step: int) -> None:
    """Raises NumericsError if too many of the round's first `step` updates were not finite."""
    settings, broken = self._settings, int(metrics['broken'])
    if broken >= 0:
      loss = float(metrics['loss'])
      self._first = f' (the first leaf is {self._names[broken]!r}, at a loss of {loss:g})'
    in_a_row, skipped = int(metrics['skipped_in_a_row']), int(metrics['skipped'])
    # A large share raises only with `many`, because a share of the first few updates says little.
    many = skipped >= settings.max_skipped_in_a_row
    share = 100 * skipped > settings.max_skipped_percent * step
    if in_a_row >= settings.max_skipped_in_a_row or (many and share):
      raise errors.NumericsError(
        f'{skipped} of {step} updates were not finite, the last {in_a_row} in a row{self._first}; '
        'train in another workdir with a lower lr, or set JAX_DEBUG_NANS=1 to find the first NaN'
      )
