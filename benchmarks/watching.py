"""P20: which share of a training step the finiteness checks and the watchdog cost.

  python benchmarks/watching.py

On the device, the compiled step is compared with the same step without finiteness checks. On the
host, the script times what the loop does in each update: the finiteness check of fetched metrics,
and the check for signals and for the lock, which also tells the watchdog that the loop is alive.
The watchdog's own thread runs at the same time.
"""

import contextlib
import pathlib
import tempfile
import time

import common
import jax
from jax import numpy as jnp

from gdistill.process import interrupt
from gdistill.process import watchdog
from gdistill.training import loop
from gdistill.workdir import ledger
from gdistill.workdir import state as states

_LOOKS = 2000


def main() -> None:
  args = common.settle(common.parser(__doc__).parse_args(), devices=1)
  network, batch = ('tiny', 4) if args.smoke else ('digits', 64)
  recipe = common.recipe(network, batch)
  watched, trusting = (common.Step(recipe, 'guidance') for _ in range(2))
  _ = watched.compiled
  with taken_for_finite():
    _ = trusting.compiled
  steps = {'watched': watched, 'trusting': trusting}
  taken = common.interleaved(steps, args.repeats, 0.0 if args.smoke else 4.0)
  looks = [look_seconds(watched, recipe) for _ in range(args.repeats)]
  rows = [
    common.row(
      'P20', f'a step over one that takes all for finite, {network}, batch {batch}',
      common.ratios(taken['watched'], taken['trusting']), '<= 1.01',
    ),
    common.row(
      'P20', 'checks and watchdog on the host over a step',
      common.ratios(looks, taken['watched']), '<= 0.01',
    ),
  ]  # fmt: skip
  common.show(rows, seconds=common.medians(taken), seconds_a_look=looks)


@contextlib.contextmanager
def taken_for_finite():
  """In here the step is built without its checks: their answers are constants."""
  inner = jnp.isfinite
  jnp.isfinite = lambda a: jnp.ones(jnp.shape(a), bool)
  try:
    yield
  finally:
    jnp.isfinite = inner


def look_seconds(step: common.Step, recipe) -> float:
  """Returns the host seconds of the checks of one update, while the watchdog's thread runs."""
  step()
  names = states.names(step.state.params)
  with tempfile.TemporaryDirectory() as folder, ledger.Lock(folder) as lock:
    dog = watchdog.Watchdog(pathlib.Path(folder), 300.0)
    with dog, interrupt.Interrupt(lock.check, dog) as stop, stop.steady():
      finite = loop.Finite(recipe.train, names)
      began = time.perf_counter()
      for _ in range(_LOOKS):
        finite.check(jax.device_get(step.metrics), 1)
        _ = stop.requested
      return (time.perf_counter() - began) / _LOOKS


if __name__ == '__main__':
  main()
