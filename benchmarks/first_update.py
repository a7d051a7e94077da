"""P9: the time until the first update is done, with a filled compile cache and with an empty one.

  python benchmarks/first_update.py

Each start is a process of its own, timed from its first import to its end. The process runs the
pipeline for one update of the teacher of configs/digits.py: data, parameters, the compiled step,
the update and the card of the round.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import time

import common


def main() -> None:
  p = common.parser(__doc__)
  p.add_argument('--child', action='store_true', help='run one start, in a child process')
  args = common.settle(p.parse_args(), devices=2)
  if args.child:
    network, batch = ('tiny', 4) if args.smoke else ('digits', 64)
    one = common.recipe(network, batch, stages=('teacher',), teacher=dict(steps=1))
    with tempfile.TemporaryDirectory() as folder:
      common.fit(one, pathlib.Path(folder) / 'run', {})
    return
  taken = {'cold': [], 'warm': []}
  for _ in range(args.repeats):
    with tempfile.TemporaryDirectory() as cache:
      taken['cold'].append(start(cache, args.smoke))
      taken['warm'].append(start(cache, args.smoke))
  values = common.ratios(taken['warm'], taken['cold'])
  rows = [common.row('P9', 'time to first update, warm cache over cold, digits', values, '<= 0.35')]
  common.show(rows, seconds=common.medians(taken))


def start(cache: str, smoke: bool) -> float:
  """Returns the seconds from the start of a process to its end."""
  # 0: even short compiles are cached, because they are many.
  environment = {
    **os.environ,
    'JAX_COMPILATION_CACHE_DIR': cache,
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  }
  began = time.perf_counter()
  command = [sys.executable, __file__, '--child', *(['--smoke'] if smoke else [])]
  subprocess.run(command, env=environment, check=True, capture_output=True)
  return time.perf_counter() - began


if __name__ == '__main__':
  main()
