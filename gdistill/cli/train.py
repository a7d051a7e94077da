"""gdistill train, which is also python -m gdistill.main: run a config from start to report."""

import os
import sys
from collections.abc import Sequence

from gdistill.cli import edge

TRAIN = (
  'Trains every round of a config that is not finished, draws the quick grid and writes '
  'WORKDIR/report/index.html. Repeating the command goes on where it stopped.'
)
PLAN = (
  'Checks a config, and a workdir against it, and prints what it would do, starting nothing: '
  'parameters, rounds with their updates and learning rates, bytes a device.'
)


def parser(prog: str, description: str) -> edge.Parser:
  p = edge.Parser(
    prog=prog,
    description=description,
    epilog='--config.section.key=value overrides a key. Exit codes: 0 done, 2 bad config or '
    'argument, 3 data, 4 checkpoint, 5 numerics, 42 interrupted and saved, 134 stuck, or other '
    'processes of the run are gone: start it again.',
  )
  p.add_argument('--config', required=True, help='configs/NAME.py[:VARIANT] or a config.json')
  p.add_argument('--workdir', help='folder of the run: local, gs:// or s3://')
  p.add_argument('--plan', action='store_true', help='print the plan and start nothing')
  p.add_argument('--devices', type=int, help='with --plan: for so many, which need not be here')
  edge.add_processes(p)
  return p


def main(argv: Sequence[str], prog: str = 'python -m gdistill.main', plan: bool = False) -> int:
  argv = list(argv)
  overrides = [a for a in argv if a.startswith('--config.')]
  args = edge.parse(parser(prog, PLAN if plan else TRAIN), [a for a in argv if a not in overrides])
  return edge.call(lambda: _run(args, overrides, args.plan or plan), args.debug)


def _run(args, overrides, plan: bool) -> int:
  from gdistill import errors
  from gdistill.recipe import identity
  from gdistill.recipe import reading

  config = edge.load_config(args.config, overrides)
  _check_devices(args, plan)
  initial = config.get('initial') if isinstance(config, dict) else None
  if isinstance(initial, str) and initial and '://' not in initial:
    config['initial'] = os.path.abspath(initial)  # found again from any folder
  recipe = reading.from_config(config)
  if not args.workdir and not plan:
    raise errors.ConfigError('--workdir is missing; name a folder for the run')

  from gdistill.devices import mesh as meshes
  from gdistill.devices import processes
  from gdistill.training import checks as run_checks
  from gdistill.training import run as training_run
  from gdistill.workdir import storage

  workdir = storage.path(args.workdir) if args.workdir else None
  if plan:
    print(_plan(recipe, workdir, args.devices))
    return 0
  meshes.use_compile_cache()
  meshes.make_cpu_devices(recipe.mesh.cpu_devices)
  processes.start(args.coordinator, args.num_processes, args.process_id)
  run_checks.everything(recipe, workdir)
  from gdistill.evaluation.grid import cells as grid_cells
  from gdistill.evaluation.grid import run as grid_run

  grid_run.check(recipe)
  if recipe.initial:
    grid_cells.teacher_folder(recipe, workdir)  # the report will need it
  processes.agree('config', identity.digest_together(recipe))

  from gdistill.process import timing

  seconds = timing.Seconds()
  with edge.owned(workdir, seconds, recipe.train.stall_seconds) as stop:
    training_run.run(recipe, workdir, stop, seconds)
    _evaluate(workdir, stop, seconds)
  return 0


def _check_devices(args, plan: bool) -> None:
  from gdistill import errors

  if args.devices is not None and not plan:
    raise errors.ConfigError(
      f'--devices={args.devices} is for --plan alone; a run takes the devices there are, and '
      '--config.mesh says how'
    )
  if args.devices is not None and args.devices < 1:
    raise errors.ConfigError(f'--devices={args.devices} must be at least 1')
  for name in ('coordinator', 'num_processes', 'process_id'):
    if plan and getattr(args, name) is not None:
      raise errors.ConfigError(
        f'--{name}={getattr(args, name)} is for a run; a plan of several processes takes --devices'
      )


def _plan(recipe, workdir, devices: int | None) -> str:
  """What would happen, and in a last line what is missing of the data, which may lie elsewhere."""
  from gdistill import errors
  from gdistill.devices import mesh as meshes
  from gdistill.evaluation.grid import cells as grid_cells
  from gdistill.training import checks as run_checks
  from gdistill.training import plan_text
  from gdistill.workdir import finished as finished_rounds

  meshes.make_cpu_devices(1 if devices else recipe.mesh.cpu_devices)
  there = not recipe.initial or finished_rounds.is_finished(recipe.initial)
  if there:
    run_checks.rest(recipe, workdir)
  mesh = run_checks.mesh(recipe, devices)
  if recipe.initial and there:
    grid_cells.teacher_folder(recipe, workdir)
  text = plan_text.describe(recipe, mesh, workdir)
  if not there:
    text += f'\ninitial: {recipe.initial} is no finished round yet; import or train it first'
  try:
    run_checks.data(recipe)
  except errors.DataError as e:
    text += f'\ndata: {e}'
  return text


def _evaluate(workdir, stop, seconds) -> None:
  """The quick grid, which all processes draw, and the page, unless they are there."""
  import jax

  from gdistill.devices import processes
  from gdistill.evaluation.grid import run as grid_run

  page = workdir / 'report' / 'index.html'
  recipe = grid_run.read_recipe(workdir)
  idle = not grid_run.missing(recipe, workdir, 'quick') and not seconds.spent and page.exists()
  if not processes.any_process(not idle):
    if not jax.process_index():
      print(f'nothing to do: every round is finished; {page}', file=sys.stderr)
    return
  rows = grid_run.run(workdir, 'quick', stop, seconds)
  if not jax.process_index():
    grid_run.write(workdir, rows)
