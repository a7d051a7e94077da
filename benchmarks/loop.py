"""P7: what the training loop costs beyond the compiled step that it calls.

  python benchmarks/loop.py

The loop is loop.fit inside a run of the pipeline on configs/digits.py, with batches, logs,
progress, the finiteness check, and a checkpoint every 500 updates. The bare step is called with the
same batch every time.
"""

import pathlib
import tempfile
import time

import common
import jax


def main() -> None:
  args = common.settle(common.parser(__doc__).parse_args(), devices=2)
  network, batch, updates = ('tiny', 4, 4) if args.smoke else ('digits', 64, 501)
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    # A teacher to distil; its quality does not change the time.
    common.fit(recipe(network, batch, ('teacher',), 1, ''), folder / 'teacher', {})
    guided = recipe(network, batch, ('guidance',), updates, str(folder / 'teacher/00_teacher'))
    compiled, taken, spent = {}, {'loop': [], 'bare': []}, []
    step = common.Step(guided, 'guidance', devices=jax.device_count())
    for repeat in range(args.repeats + 1):
      loop, seconds = common.fit(guided, folder / f'{repeat}', compiled)
      bare = bare_seconds(step, updates)
      if repeat:  # the first repeat is a warm-up
        taken['loop'].append(loop[0] / updates)
        taken['bare'].append(bare / updates)
        spent.append(seconds.spent)
  text = f'real loop over the bare step, {network}, batch {batch}, {updates} updates and a save'
  rows = [common.row('P7', text, common.ratios(taken['loop'], taken['bare']), '<= 1.03')]
  common.show(rows, seconds_an_update=common.medians(taken), where_a_run_went=spent)


def recipe(network: str, batch: int, stages: tuple, updates: int, initial: str):
  return common.recipe(
    network, batch, stages=stages, initial=initial,
    teacher=dict(steps=updates), guidance=dict(steps=updates),
  )  # fmt: skip


def bare_seconds(step: common.Step, updates: int) -> float:
  """Returns the seconds of `updates` calls of the compiled step, one ahead of the devices."""
  began = time.perf_counter()
  for _ in range(updates):
    step.dispatch()
  jax.block_until_ready(step.metrics)
  return time.perf_counter() - began


if __name__ == '__main__':
  main()
