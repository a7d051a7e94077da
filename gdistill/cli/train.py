"""gdistill train, which is also python -m gdistill.main: run a config from start to report."""

import os
import sys
from collections.abc import Sequence

from gdistill.cli import edge


def parser(prog: str) -> edge.Parser:
  p = edge.Parser(
    prog=prog,
    description='Trains every round of a config that is not finished, draws the quick grid and '
    'writes WORKDIR/report/index.html. Repeating the command goes on where it stopped.',
    epilog='--config.section.key=value overrides a key. Exit codes: 0 done, 2 bad config or '
    'argument, 3 data, 4 checkpoint, 5 numerics, 42 interrupted and saved.',
  )
  p.add_argument('--config', required=True, help='configs/NAME.py[:VARIANT] or a config.json')
  p.add_argument('--workdir', help='folder of the run: local, gs:// or s3://')
  p.add_argument('--plan', action='store_true', help='print the plan and start nothing')
  p.add_argument('--coordinator', help='HOST:PORT of process 0, for several processes')
  p.add_argument('--num_processes', type=int)
  p.add_argument('--process_id', type=int)
  return p


def main(argv: Sequence[str], prog: str = 'python -m gdistill.main', plan: bool = False) -> int:
  argv = list(argv)
  overrides = [a for a in argv if a.startswith('--config.')]
  args = edge.parse(parser(prog), [a for a in argv if a not in overrides])
  return edge.call(lambda: _run(args, overrides, args.plan or plan), args.debug)


def _run(args, overrides, plan: bool) -> int:
  from gdistill import errors
  from gdistill import recipe as recipes

  config = edge.load_config(args.config, overrides)
  initial = config.get('initial') if isinstance(config, dict) else None
  if isinstance(initial, str) and initial and '://' not in initial:
    config['initial'] = os.path.abspath(initial)  # found again from any folder
  recipe = recipes.from_config(config)
  if not args.workdir and not plan:
    raise errors.ConfigError('--workdir is missing; name a folder for the run')

  from gdistill import parallel
  from gdistill import pipeline
  from gdistill import storage

  parallel.make_cpu_devices(recipe.mesh.cpu_devices)
  parallel.start(args.coordinator, args.num_processes, args.process_id)
  workdir = storage.path(args.workdir) if args.workdir else None
  mesh = pipeline.check(recipe, workdir)
  if recipe.initial:
    from gdistill import evaluate

    evaluate.teacher_folder(recipe, workdir)  # the report will need it
  if plan:
    print(pipeline.describe(recipe, mesh))
    return 0
  parallel.agree('config', recipes.digest(recipe))

  import contextlib

  import jax

  from gdistill import interrupt
  from gdistill import ledger
  from gdistill import train as training

  seconds = training.Seconds()
  writer = jax.process_index() == 0
  lock = ledger.Lock(workdir) if writer else contextlib.nullcontext()
  stop = interrupt.Interrupt(lock.check) if writer else interrupt.Interrupt()
  with stop, lock:
    try:
      pipeline.run(recipe, workdir, stop, seconds)
      if writer:
        _evaluate(workdir, stop, seconds)
    finally:
      if seconds.spent and writer and not lock.lost:
        pipeline.account(workdir, seconds)
  parallel.barrier('the report is written')
  return 0


def _evaluate(workdir, stop, seconds) -> None:
  """The quick grid and the page, unless they are there."""
  from gdistill import evaluate

  cells = evaluate.missing(workdir, 'quick')
  page = workdir / 'report' / 'index.html'
  if not cells and not seconds.spent and page.exists():
    print(f'nothing to do: every round is finished; {page}', file=sys.stderr)
  else:
    evaluate.write(workdir, evaluate.run(workdir, 'quick', stop, seconds))
