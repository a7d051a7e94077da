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
  from gdistill.recipe import reading

  config = edge.load_config(args.config, overrides)
  _check_devices(args, plan)
  initial = config.get('initial') if isinstance(config, dict) else None
  if isinstance(initial, str) and initial and '://' not in initial:
    config['initial'] = os.path.abspath(initial)  # found again from any folder
  recipe = reading.from_config(config)
  if not args.workdir and not plan:
    raise errors.ConfigError('--workdir is missing; name a folder for the run')

  from gdistill.training import assemble

  run = assemble.Run(recipe, args.workdir or None, args.devices)
  if plan:
    print(_plan(run, args.devices))
    return 0
  _start(run, args)

  from gdistill.process import timing
  from gdistill.training import run as training_run

  seconds = timing.Seconds()
  with edge.owned(run.workdir, seconds, run.loop.stall_seconds) as stop:
    training_run.train(run, stop, seconds)
    _evaluate(run.workdir, stop, seconds)
  return 0


def _start(run, args) -> None:
  """Starts the devices, makes every check, and makes sure that all processes have one config."""
  from gdistill.devices import mesh as meshes
  from gdistill.devices import processes
  from gdistill.evaluation.grid import run as grid_run
  from gdistill.training import checks as run_checks

  meshes.use_compile_cache()
  meshes.make_cpu_devices(run.cpu_devices)
  processes.start(args.coordinator, args.num_processes, args.process_id)
  run_checks.everything(run)
  grid_run.check(run)
  run.teacher_folder  # noqa: B018 - raises if the report's teacher is missing
  processes.agree('config', run.digest)


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


def _plan(run, devices: int | None) -> str:
  """Returns the text of --plan; the last lines say which inputs are missing on this machine."""
  from gdistill import errors
  from gdistill.devices import mesh as meshes
  from gdistill.training import checks as run_checks
  from gdistill.training import plan_text
  from gdistill.workdir import finished as finished_rounds

  meshes.make_cpu_devices(1 if devices else run.cpu_devices)
  initial = run.recipe.initial
  there = not initial or finished_rounds.is_finished(initial)
  if there:
    run_checks.folders_and_grid(run)
  run_checks.mesh(run)
  if initial and there:
    run.teacher_folder  # noqa: B018 - raises if the report's teacher is missing
  text = plan_text.describe(run.plan, run.setups, run.student_shapes, run.mesh, run.workdir)
  if not there:
    text += f'\ninitial: {initial} is no finished round yet; import or train it first'
  try:
    run_checks.data(run)
  except errors.DataError as e:
    text += f'\ndata: {e}'
  return text


def _evaluate(workdir, stop, seconds) -> None:
  """Draws the quick grid, in all processes, and writes the page, unless both are there."""
  import jax

  from gdistill.devices import processes
  from gdistill.evaluation.grid import run as grid_run
  from gdistill.training import assemble

  page = workdir / 'report' / 'index.html'
  run = assemble.of_workdir(workdir)
  idle = not grid_run.missing(run, 'quick') and not seconds.spent and page.exists()
  if not processes.any_process(not idle):
    if not jax.process_index():
      print(f'nothing to do: every round is finished; {page}', file=sys.stderr)
    return
  rows = grid_run.evaluate(run, 'quick', stop, seconds)
  if not jax.process_index():
    grid_run.write(run, rows)
