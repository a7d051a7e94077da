"""gdistill train, also python -m gdistill.main: trains and evaluates all rounds of a config."""

import os
import sys
from collections.abc import Sequence

from gdistill.cli import command_line
from gdistill.cli import config_file
from gdistill.cli import exit_codes
from gdistill.cli import held_workdir

TRAIN = (
  'Trains all rounds of a config that are not finished, evaluates the quick grid and writes '
  'WORKDIR/report/index.html. If the run stops, repeat the command to resume.'
)
PLAN = (
  'Checks a config, and whether a workdir fits the config, and prints what a run would do, without '
  'starting it: parameters, rounds with their updates and learning rates, bytes per device.'
)


def parser(prog: str, description: str) -> command_line.Parser:
  p = command_line.Parser(
    prog=prog,
    description=description,
    epilog='--config.section.key=value overrides a key of the config. Exit codes: 0 done; 2 '
    'invalid config or argument; 3 data missing or damaged; 4 checkpoint not readable or writable; '
    '5 loss or gradient not finite; 42 interrupted and saved: repeat the command; 134 no progress, '
    'or other processes of the run are gone: start all processes again.',
  )
  p.add_argument(
    '--config', required=True, help='configs/NAME.py[:VARIANT], or the config.json of a run'
  )
  p.add_argument('--workdir', help='folder of the run: a local path, gs:// or s3://')
  p.add_argument('--plan', action='store_true', help='print the plan and start nothing')
  p.add_argument(
    '--devices', type=int,
    help='for a plan: number of devices to plan for, which may be more than this machine has '
    '(default: the devices of this machine)',
  )  # fmt: skip
  p.add_argument(
    '--topology',
    help='for a plan: compile every stage for chips that are not here, such as v4:4x4x8, '
    'v5litepod-128, 2x v5e:8x16 or h200:8, and print what the programs need',
  )
  p.add_argument(
    '--stage', action='append',
    help='for --topology: compile this stage only; may be given more than once',
  )  # fmt: skip
  p.add_argument(
    '--samplers', action='store_true',
    help='for --topology: compile the program with which the students draw, instead of the stages',
  )  # fmt: skip
  p.add_argument(
    '--mfu', type=float, default=0.4,
    help='for --topology: share of the peak FLOP/s with which hours are reckoned (default: 0.4)',
  )  # fmt: skip
  p.add_argument(
    '--level', default='O0',
    help='for --topology: optimization level of XLA, from O0, which is quick, to O3, or `run`, '
    'with which a run is compiled (default: O0)',
  )  # fmt: skip
  p.add_argument(
    '--minutes', type=float, default=60.0,
    help='for --topology: give up the compile of a stage after so many minutes (default: 60)',
  )  # fmt: skip
  p.add_argument(
    '--kept', action='store_true',
    help='for --topology: print what was compiled before on this machine, and compile nothing',
  )  # fmt: skip
  p.add_argument('--json', help='for --topology: write the figures to this file, too')
  command_line.add_process_flags(p)
  return p


def main(argv: Sequence[str], prog: str = 'python -m gdistill.main', plan: bool = False) -> int:
  argv = list(argv)
  overrides = [a for a in argv if a.startswith('--config.')]
  flags = [a for a in argv if a not in overrides]
  args = command_line.parse(parser(prog, PLAN if plan else TRAIN), flags)
  return exit_codes.call(lambda: _run(args, overrides, args.plan or plan), args.debug)


def _run(args, overrides, plan: bool) -> int:
  from gdistill import errors
  from gdistill.recipe import reading

  config = config_file.load(args.config, overrides)
  _check_devices(args, plan)
  initial = config.get('initial') if isinstance(config, dict) else None
  if isinstance(initial, str) and initial and '://' not in initial:
    # `initial` becomes an absolute path, so that the run can be resumed from another current
    # folder.
    config['initial'] = os.path.abspath(os.path.expanduser(initial))
  recipe = reading.from_config(config)
  if not args.workdir and not plan:
    raise errors.ConfigError('--workdir is missing; give --workdir=FOLDER for the files of the run')

  from gdistill.training import assemble

  if plan and args.topology:
    from gdistill.cli import plan_topology

    return plan_topology.run(args, recipe)
  run = assemble.Run(recipe, args.workdir or None, args.devices)
  if plan:
    print(_plan(run, args.devices))
    return 0
  _start(run, args)

  from gdistill.process import timing
  from gdistill.training import run as training_run

  seconds = timing.Seconds()
  with held_workdir.hold(run.workdir, seconds, run.loop.stall_seconds) as stop:
    training_run.train(run, stop, seconds)
    workdir = run.workdir
    del run  # frees data and frozen networks, because the evaluation reads both again
    _evaluate(workdir, stop, seconds)
  return 0


def _start(run, args) -> None:
  """Starts the devices and the connections between processes, and makes all checks of the run.

  Raises ConfigError if the processes of the run do not have the same config.
  """
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
      f'--devices={args.devices} is only for --plan: a run uses all devices that it finds; leave '
      '--devices out'
    )
  _check_topology(args, plan)
  if args.devices is not None and args.devices < 1:
    raise errors.ConfigError(f'--devices={args.devices} must be at least 1')
  for name in ('coordinator', 'num_processes', 'process_id'):
    if plan and getattr(args, name) is not None:
      raise errors.ConfigError(
        f'--{name}={getattr(args, name)} starts a run of several processes, and a plan starts '
        f'nothing; leave --{name} out, and give the number of devices of all processes as '
        '--devices'
      )


def _check_topology(args, plan: bool) -> None:
  from gdistill import errors

  stage = args.stage and args.stage[0]
  flags = {'topology': args.topology, 'stage': stage, 'json': args.json}
  flags |= {'samplers': args.samplers, 'kept': args.kept}
  for name, value in flags.items():
    given = f'--{name}' if value is True else f'--{name}={value}'
    if value and not plan:
      raise errors.ConfigError(f'{given} is only for --plan; leave --{name} out')
    if value and not args.topology:
      raise errors.ConfigError(f'{given} needs --topology, such as --topology=v4:4x4x8')
  if args.topology and args.devices is not None:
    raise errors.ConfigError(
      f'--devices={args.devices}: --topology={args.topology} says the number of devices; leave '
      '--devices out'
    )


def _plan(run, devices: int | None) -> str:
  """Returns the text of the plan; its last lines name a missing initial round or missing data.

  A missing initial round or data set raises no error, because a plan may be made on a machine that
  has neither.
  """
  from gdistill import errors
  from gdistill.devices import mesh as meshes
  from gdistill.training import checks as run_checks
  from gdistill.training import plan_text
  from gdistill.workdir import finished as finished_rounds

  meshes.make_cpu_devices(1 if devices else run.cpu_devices)
  initial = run.initial
  there = not initial or finished_rounds.is_finished(initial)
  if there:
    run_checks.folders_and_grid(run)
  run_checks.mesh(run)
  if there and run.plan[0].stage != 'teacher':
    run.teacher_folder  # noqa: B018 - raises if the teacher that the report shows is missing
  text = plan_text.describe(run.plan, run.setups, run.student_shapes, run.mesh, run.workdir)
  if not there:
    text += f'\ninitial: {initial} is not a finished round yet; import or train it first'
  try:
    run_checks.data(run, plan=True)
  except errors.DataError as e:
    text += f'\ndata: {e}'
  return text


def _evaluate(workdir, stop, seconds) -> None:
  """Evaluates the quick grid on all processes and writes the report.

  Does nothing if this command trained nothing, the report exists, and each combination of model,
  sampler, number of steps and w in the grid was measured before.
  """
  import jax

  from gdistill.devices import processes
  from gdistill.evaluation.grid import run as grid_run
  from gdistill.training import assemble

  page = workdir / 'report' / 'index.html'
  run = assemble.of_workdir(workdir)
  processes.agree('config.json', run.digest)
  idle = not grid_run.missing(run, 'quick') and not seconds.spent and page.exists()
  if not processes.any_process(not idle):
    if not jax.process_index():
      print(f'nothing to do: every round is finished, and the report is {page}', file=sys.stderr)
    return
  rows = grid_run.evaluate(run, 'quick', stop, seconds)
  if not jax.process_index():
    grid_run.write(run, rows)
