"""A run with every stage that is small enough to be repeated forty times in a test."""

import threading

from gdistill.cli import config_file
from gdistill.evaluation.grid import run as grid_run
from gdistill.process import interrupt
from gdistill.process import timing
from gdistill.recipe import reading
from gdistill.training import assemble
from gdistill.training import checks as run_checks
from gdistill.training import run as training_run


def config(**sections):
  """Returns a config of 40 updates: teacher 12, stage one 10, rounds of N = 2 and 1 with 9 each."""
  c = config_file.load('configs/digits.py:tiny', [])
  c['model'].update(channels=4, multipliers=(1,), emb_channels=8, w_features=4, groups=2)
  c['teacher'].update(steps=12, batch_size=4)
  c['guidance'].update(steps=10, batch_size=4)
  c['progressive'].update(steps=9, last_steps=9, last_lr=5e-4, start_steps=4, batch_size=4)
  c['train'].update(checkpoint_every=5, log_every=3)
  c['mesh'].update(cpu_devices=1)
  c['evaluation'].update(
    ws=(0.0, 2.0), num_steps=(1, 2), batch_size=20,
    quick_images=20, quick_reference_steps=4, full_images=30, full_reference_steps=4, bank=100,
  )  # fmt: skip
  for name, values in sections.items():
    if isinstance(values, dict):
      c[name].update(values)
    else:
      c[name] = values
  return c


def recipe(**sections):
  return reading.from_config(config(**sections))


def train(recipe, workdir, stop=None, compiled=None, seconds=None):
  """Checks and trains a run, as the command does; returns the run."""
  run = assemble.Run(recipe, workdir)
  run_checks.everything(run)
  training_run.train(run, stop or interrupt.Interrupt(), seconds or timing.Seconds(), compiled)
  return run


def evaluate(workdir, size='quick', change=None, again=None, stop=None):
  """Draws and measures the grid of a run, after `change(config)`; returns the rows."""
  run = assemble.of_workdir(workdir, change)
  stop = stop or interrupt.Interrupt()
  return grid_run.evaluate(run, size, stop, timing.Seconds(), again)


class StopAfter(interrupt.Interrupt):
  """An Interrupt that asks to stop after the loop has looked `looks` times, once per update."""

  def __init__(self, looks):
    super().__init__()
    self._left = looks
    self._lock = threading.Lock()

  @property
  def requested(self):
    with self._lock:
      self._left -= 1
      return 'SIGTERM' if self._left < 0 else ''
