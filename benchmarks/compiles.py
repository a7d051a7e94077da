"""P13: how often a run compiles; the goal is one train step per stage, for any number of rounds.

  python benchmarks/compiles.py

The script runs every stage, with three rounds of stage two, at tiny sizes, and counts the compiles
that JAX logs.
"""

import collections
import logging
import pathlib
import re
import tempfile

import common
import jax


class Compiles(logging.Handler):
  """A log handler that counts compiled functions by name."""

  def __init__(self):
    super().__init__()
    self.names = collections.Counter()

  def emit(self, record: logging.LogRecord) -> None:
    found = re.match(r'Finished XLA compilation of (?:jit\()?([^\s)]+)', record.getMessage())
    if found:
      self.names[found[1]] += 1


def main() -> None:
  common.arguments(__doc__)
  jax.config.update('jax_log_compiles', True)
  counter, logger = Compiles(), logging.getLogger('jax')
  logger.addHandler(counter)
  logger.propagate = False
  recipe = common.recipe(
    'tiny', 8, teacher=dict(steps=2), guidance=dict(steps=2),
    progressive=dict(steps=2, last_steps=2, start_steps=8),
  )  # fmt: skip
  with tempfile.TemporaryDirectory() as folder:
    common.fit(recipe, pathlib.Path(folder) / 'run', {})
    events = common.events(pathlib.Path(folder) / 'run')
  stages = len(recipe.stages)
  rounds = events['round-finished']
  text = f'train steps compiled, {rounds} rounds of {stages} stages'
  rows = [
    common.row('P13', text, counter.names['step'], f'= {stages}'),
    common.row('P13', 'all compiles of that run', sum(counter.names.values())),
  ]
  common.show(rows, compiled=dict(counter.names.most_common()), events=dict(events))


if __name__ == '__main__':
  main()
