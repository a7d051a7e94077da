"""A run with every stage that is small enough to be repeated forty times in a test."""

import threading

from gdistill.cli import edge
from gdistill.process import interrupt
from gdistill.recipe import reading


def config(**sections):
  """Returns a config of 40 updates: teacher 12, stage one 10, rounds of N = 2 and 1 with 9 each."""
  c = edge.load_config('configs/digits.py:tiny', [])
  c['model'].update(channels=4, multipliers=(1,), emb_channels=8, w_features=4, groups=2)
  c['teacher'].update(steps=12, batch_size=4)
  c['guidance'].update(steps=10, batch_size=4)
  c['progressive'].update(steps=9, last_steps=9, last_lr=5e-4, start_steps=4, batch_size=4)
  c['train'].update(checkpoint_every=5, log_every=3)
  c['mesh'].update(cpu_devices=1)
  c['evaluation'].update(
    ws=(0.0, 2.0), num_steps=(1, 2), batch_size=20,
    quick_images=20, quick_reference_steps=4, full_images=30, full_reference_steps=4,
  )  # fmt: skip
  for name, values in sections.items():
    if isinstance(values, dict):
      c[name].update(values)
    else:
      c[name] = values
  return c


def recipe(**sections):
  return reading.from_config(config(**sections))


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
