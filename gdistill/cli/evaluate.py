"""gdistill evaluate: measures a finished run over its grid of w and steps, or a set of pictures."""

from collections.abc import Sequence

from gdistill.cli import command_line
from gdistill.cli import config_file
from gdistill.cli import evaluate_images
from gdistill.cli import exit_codes
from gdistill.cli import extractor_flags
from gdistill.cli import held_workdir

# _GRID: the flags that need --workdir. _IMAGES: the flags that need --images.
_GRID = ('grid', 'model', 'sampler', 'num_steps', 'w', 'coordinator', 'num_processes', 'process_id')
_IMAGES = (
  'reference', 'captions', 'clip', 'clip_weights', 'tokenizer', 'out', 'resize',
)  # fmt: skip


def parser() -> command_line.Parser:
  p = command_line.Parser(
    prog='gdistill evaluate',
    description='With --workdir, draws the cells of the grid that are missing, measures all cells '
    'and rewrites WORKDIR/report. --model, --sampler, --num_steps and --w choose cells that are '
    'drawn again: the cells that match all of these flags. With --images, measures pictures of any '
    'origin against a reference and prints a row of figures.',
    epilog='--config.evaluation.key=value overrides an evaluation setting of the run.',
  )
  p.add_argument('--workdir', help='folder of a finished run')
  p.add_argument(
    '--preset',
    help='protocol of a published table: cifar10, imagenet64, imagenet256, coco5k, coco30k, '
    'laion_aesthetic or laion_aesthetic_768. Alone, print what the protocol needs; with --workdir, '
    'evaluate the full grid by the protocol; with --images, measure the pictures by the protocol',
  )
  _add_grid_flags(p)
  evaluate_images.add_flags(p)
  extractor_flags.add(p, '; with --workdir, the feature network of the config')
  command_line.add_process_flags(p)
  return p


def _add_grid_flags(p: command_line.Parser) -> None:
  """Adds --grid, the size of the evaluation grid, and --model, --sampler, --num_steps and --w.

  --model, --sampler, --num_steps and --w choose which pictures of the grid are sampled again.
  """
  p.add_argument(
    '--grid', choices=('quick', 'full'),
    help='size of the grid, quick (default) or full: evaluation.quick_* and evaluation.full_* of '
    'the config set the images in a cell and the steps of the reference images',
  )  # fmt: skip
  p.add_argument(
    '--model',
    choices=('teacher', 'student'),
    help='with --workdir: draw the cells of this model again',
  )
  p.add_argument(
    '--sampler',
    help='with --workdir: draw the cells of this sampler again (ddim, stochastic, ancestral or '
    'dpm_solver)',
  )
  p.add_argument(
    '--num_steps', type=int, help='with --workdir: draw the cells of this number of steps again'
  )
  p.add_argument(
    '--w', type=float, help='with --workdir: draw the cells of this guidance strength again'
  )


def main(argv: Sequence[str]) -> int:
  argv = list(argv)
  overrides = [a for a in argv if a.startswith('--config.')]
  args = command_line.parse(parser(), [a for a in argv if a not in overrides])
  return exit_codes.call(lambda: _run(args, overrides), args.debug)


def _run(args, overrides) -> int:
  from gdistill import errors

  if args.preset and not args.images and not args.workdir:
    for name in (*_GRID, *_IMAGES):
      if getattr(args, name) is not None:
        raise errors.ConfigError(
          f'--{name}={getattr(args, name)} needs --images or --workdir: --preset={args.preset} '
          'alone only prints what the protocol needs; add --images or --workdir'
        )
    return _describe(args)
  if bool(args.workdir) == bool(args.images):
    raise errors.ConfigError(
      'give either --workdir, a finished run, or --images, the pictures to measure'
    )
  given, others = ('images', _GRID) if args.images else ('workdir', _IMAGES)
  for name in others:
    if getattr(args, name) is not None:
      raise errors.ConfigError(
        f'--{name}={getattr(args, name)} has no meaning with --{given}; leave --{name} out'
      )
  if args.images:
    if overrides:
      raise errors.ConfigError(
        f'{overrides[0]} has no meaning with --images; leave this override out'
      )
    return evaluate_images.run(args)
  wrong = next((o for o in overrides if not o.startswith('--config.evaluation.')), '')
  if wrong:
    raise errors.ConfigError(
      f'{wrong} is not an evaluation setting, and gdistill evaluate can override only '
      '--config.evaluation.key=value; leave this override out'
    )
  return _grid(args, [*_settings(args, overrides), *overrides])


def _settings(args, overrides) -> list[str]:
  """Returns the settings of --preset, --extractor and --weights as overrides of the config.

  Overrides that the user gives are applied after the returned overrides, and so take precedence.
  """
  from gdistill import errors

  settings = _of_preset(args, overrides) if args.preset else {}
  if args.extractor:
    settings['extractor'] = args.extractor
  if args.weights:
    if 'extractor' not in settings:
      raise errors.ConfigError(
        f'--weights={args.weights} needs --extractor; add --extractor=NAME, the network that the '
        'weights belong to'
      )
    settings['weights'] = args.weights
  return _flags(settings)


def _flags(settings: dict) -> list[str]:
  return [f'--config.evaluation.{k}={v}' for k, v in settings.items()]


def _of_preset(args, overrides) -> dict:
  """Returns the evaluation settings {key: value} of the protocol --preset, and sets --grid=full.

  Raises ConfigError for --grid=quick, or if the protocol measures pictures of another size than the
  run's pictures, or pictures that were drawn from given prompts.
  """
  from gdistill import errors
  from gdistill.evaluation import presets
  from gdistill.training import assemble

  preset = presets.get(args.preset)
  if args.grid == 'quick':
    raise errors.ConfigError(
      f'--grid=quick: the protocol of --preset={preset.name} needs the full grid; leave --grid out'
    )
  settings = {
    'extractor': preset.extractor, 'full_images': preset.images, 'real_images': 2**31 - 1,
    'ws': preset.ws, 'num_steps': preset.num_steps,
  }  # fmt: skip
  flags = [*_flags(settings), *overrides]
  run = assemble.of_workdir(args.workdir, lambda config: config_file.override(config, flags))
  size = run.picture_shape[0]
  if preset.prompts or size != preset.size:
    pixels = f'pictures of {preset.size} pixels, and this run draws pictures of {size} pixels'
    measured = 'pictures drawn from given prompts' if preset.prompts else pixels
    raise errors.ConfigError(
      f'--preset={preset.name} measures {measured}; draw the pictures with gdistill sample, then '
      'repeat gdistill evaluate with --images and --reference instead of --workdir'
    )
  args.grid = 'full'
  return settings


def _grid(args, overrides) -> int:
  """Evaluates the finished run in --workdir over its grid of w and steps, and writes the report."""
  import jax

  from gdistill.data import source
  from gdistill.devices import mesh as meshes
  from gdistill.devices import processes
  from gdistill.evaluation.grid import run as grid_run
  from gdistill.process import progress
  from gdistill.process import timing
  from gdistill.training import assemble

  run = assemble.of_workdir(args.workdir, lambda config: config_file.override(config, overrides))
  grid_run.check(run)
  meshes.use_compile_cache()
  meshes.make_cpu_devices(run.cpu_devices)
  processes.start(args.coordinator, args.num_processes, args.process_id)
  processes.agree('config', run.digest)
  names = ('model', 'sampler', 'num_steps', 'w')
  again = {k: getattr(args, k) for k in names if getattr(args, k) is not None}
  seconds = timing.Seconds()
  with held_workdir.hold(run.workdir, seconds, run.loop.stall_seconds) as stop:
    for line in () if jax.process_index() else source.notes(*run.own_pictures):
      progress.say(line)
    rows = grid_run.evaluate(run, args.grid or 'quick', stop, seconds, again)
    if not jax.process_index():
      grid_run.write(run, rows)
  return 0


def _describe(args) -> int:
  """Prints the pictures, reference, grid and published metrics of the protocol --preset."""
  from gdistill.evaluation import presets

  preset = presets.get(args.preset)
  ws, steps = (', '.join(f'{v:g}' for v in values) for values in (preset.ws, preset.num_steps))
  print(f'{preset.name}: {preset.table}')
  print(f'pictures: {preset.images:,} of {preset.size} x {preset.size}, PNG or npz')
  print(f'reference: {preset.reference}; {preset.resize}')
  print(f'measured: {", ".join(preset.metrics)} by {preset.extractor} {preset.clip}'.rstrip())
  print(f'grid: w in {ws}; N in {steps}')
  for one in preset.published:
    figures = ', '.join(f'{k} {v:g}' for k, v in one.items() if k != 'source')
    print(f'published: {figures} ({one["source"]})')
  return 0
