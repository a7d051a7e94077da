"""gdistill evaluate: the grid of a finished run, into its report; or anybody's pictures, a row."""

import os
from collections.abc import Sequence

from gdistill.cli import edge

# What belongs to the grid of a run, and what to pictures; the rest to both.
_GRID = ('grid', 'model', 'sampler', 'num_steps', 'w', 'coordinator', 'num_processes', 'process_id')
_IMAGES = (
  'reference', 'captions', 'clip', 'clip_weights', 'tokenizer', 'out', 'resize',
)  # fmt: skip


def parser() -> edge.Parser:
  p = edge.Parser(
    prog='gdistill evaluate',
    description='Draws the cells that are missing, measures all and rewrites WORKDIR/report. '
    'With --model, --sampler, --num_steps or --w the matching cells are drawn anew. With --images '
    "instead of --workdir measures anybody's pictures.",
    epilog="--config.evaluation.key=value overrides the run's own settings.",
  )
  p.add_argument('--workdir', help='of a finished run')
  p.add_argument(
    '--grid', choices=('quick', 'full'),
    help='how many images a cell and reference steps: evaluation.quick_* (default) or full_* of '
    'the config',
  )  # fmt: skip
  p.add_argument('--model', choices=('teacher', 'student'), help='only its cells anew')
  p.add_argument('--sampler', help='only the cells drawn with it anew')
  p.add_argument('--num_steps', type=int, help='only the cells of so many steps anew')
  p.add_argument('--w', type=float, help='only the cells of this w anew')
  p.add_argument('--images', help='a folder of pictures, or an .npz file of pixels')
  p.add_argument('--reference', help='with --images: a file of statistics, or pictures likewise')
  p.add_argument(
    '--preset',
    help="a published table's protocol: cifar10, imagenet64, imagenet256, coco5k, coco30k, "
    'laion_aesthetic or laion_aesthetic_768; alone it says what it needs, with --workdir it is a '
    "full grid by it, with --images a row of anybody's pictures",
  )  # fmt: skip
  p.add_argument(
    '--captions', help='with --images: a folder with a .txt beside each name; CLIP score'
  )
  p.add_argument(
    '--clip', choices=('clip_l14', 'clip_b32'), help='of the CLIP score; default: clip_l14'
  )
  p.add_argument('--clip_weights', help='its file')
  p.add_argument('--tokenizer', help='its tokenizer.json')
  p.add_argument('--out', help='with --images: a JSON file for the row, which is also printed')
  edge.add_extractor(p, "; of a run's grid its config's")
  edge.add_processes(p)
  return p


def main(argv: Sequence[str]) -> int:
  argv = list(argv)
  overrides = [a for a in argv if a.startswith('--config.')]
  args = edge.parse(parser(), [a for a in argv if a not in overrides])
  return edge.call(lambda: _run(args, overrides), args.debug)


def _run(args, overrides) -> int:
  from gdistill import errors

  if args.preset and not args.images and not args.workdir:
    for name in (*_GRID, *_IMAGES):
      if getattr(args, name) is not None:
        raise errors.ConfigError(
          f'--preset={args.preset} alone says what it needs; --{name}={getattr(args, name)} needs '
          '--images or --workdir'
        )
    return _describe(args)
  if bool(args.workdir) == bool(args.images):
    raise errors.ConfigError(
      "give one of --workdir, a finished run, and --images, anybody's pictures"
    )
  given, others = ('images', _GRID) if args.images else ('workdir', _IMAGES)
  for name in others:
    if getattr(args, name) is not None:
      raise errors.ConfigError(
        f'--{name}={getattr(args, name)} says nothing where --{given} is given; leave it out'
      )
  if args.images:
    if overrides:
      raise errors.ConfigError(f'{overrides[0]} is for --workdir: pictures have no config')
    return _images(args)
  wrong = next((o for o in overrides if not o.startswith('--config.evaluation.')), '')
  if wrong:
    raise errors.ConfigError(f'{wrong}: only --config.evaluation.key=value changes an evaluation')
  return _grid(args, [*_settings(args), *overrides])


def _settings(args) -> list[str]:
  """What flags say of an evaluation, as overrides; a user's own come after them."""
  from gdistill import errors

  settings = _of_preset(args) if args.preset else {}
  if args.extractor:
    settings['extractor'] = args.extractor
  if args.weights:
    if 'extractor' not in settings:
      raise errors.ConfigError(f'--weights={args.weights} is of one network; say --extractor too')
    settings['weights'] = args.weights
  return [f'--config.evaluation.{k}={v}' for k, v in settings.items()]


def _of_preset(args) -> dict:
  from gdistill import errors
  from gdistill.evaluation import presets
  from gdistill.training import assemble

  preset = presets.get(args.preset)
  if args.grid == 'quick':
    raise errors.ConfigError(f'--grid=quick is not the protocol of --preset={preset.name}')
  size = assemble.of_workdir(args.workdir).picture_shape[0]
  if preset.prompts or size != preset.size:
    what = 'prompts' if preset.prompts else f'pictures of {preset.size} pixels, not {size}'
    raise errors.ConfigError(
      f'--preset={preset.name} is of {what}: draw them, and give --images and --reference'
    )
  args.grid = 'full'
  return {
    'extractor': preset.extractor, 'full_images': preset.images, 'real_images': 2**31 - 1,
    'ws': preset.ws, 'num_steps': preset.num_steps,
  }  # fmt: skip


def _grid(args, overrides) -> int:
  import jax

  from gdistill.devices import mesh as meshes
  from gdistill.devices import processes
  from gdistill.evaluation.grid import run as grid_run
  from gdistill.process import timing
  from gdistill.training import assemble

  run = assemble.of_workdir(args.workdir, lambda config: edge.override(config, overrides))
  grid_run.check(run)
  meshes.use_compile_cache()
  meshes.make_cpu_devices(run.cpu_devices)
  processes.start(args.coordinator, args.num_processes, args.process_id)
  processes.agree('config', run.digest)
  names = ('model', 'sampler', 'num_steps', 'w')
  again = {k: getattr(args, k) for k in names if getattr(args, k) is not None}
  seconds = timing.Seconds()
  with edge.owned(run.workdir, seconds, run.loop.stall_seconds) as stop:
    rows = grid_run.evaluate(run, args.grid or 'quick', stop, seconds, again)
    if not jax.process_index():
      grid_run.write(run, rows)
  return 0


def _describe(args) -> int:
  """What a preset needs."""
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


def _images(args) -> int:
  import json
  import sys

  from gdistill import errors
  from gdistill.data import images as data
  from gdistill.devices import mesh as meshes
  from gdistill.evaluation import presets
  from gdistill.evaluation import samples
  from gdistill.evaluation.figures import clip_score
  from gdistill.process import progress
  from gdistill.workdir import storage

  if not args.reference:
    raise errors.ConfigError(
      '--reference is missing: statistics by gdistill statistics, or pictures'
    )
  if args.out:
    if os.path.isdir(args.out):
      raise errors.ConfigError(f'--out={args.out} is a folder; name a file for the row')
    storage.check_writable('--out', os.path.dirname(os.path.abspath(args.out)))
  preset = presets.get(args.preset) if args.preset else None
  captions = args.captions
  if preset and preset.prompts and not captions:
    if not os.path.isdir(args.reference):
      raise errors.ConfigError(
        f'--captions is missing: --reference={args.reference} is no folder with captions beside '
        'its pictures'
      )
    captions = args.reference
  given = [name for name in ('clip', 'clip_weights', 'tokenizer') if getattr(args, name)]
  if given and not captions:
    raise errors.ConfigError(f'--{given[0]} is for a CLIP score; name the captions by --captions')
  images = data.load(args.images, size=preset.size if preset else 0)
  if not os.path.exists(args.reference):  # before weights are asked for
    raise errors.DataError(
      f'--reference={args.reference} is not there; make it by gdistill statistics, or name pictures'
    )
  extractor = edge.extractor(args)
  scorer = None
  if captions:
    sentences = samples.captions(images, captions)
    scorer = clip_score.Scorer.load(
      args.clip or 'clip_l14', args.clip_weights or '', args.tokenizer or ''
    )
  meshes.use_compile_cache()
  with progress.Progress('measuring', len(images)) as bar:
    clip = scorer.image.name if scorer else ''
    row = samples.evaluate(images, args.reference, extractor, bar.update, preset, clip)
  if scorer:
    row |= samples.clip_score(images, sentences, scorer)
  for warning in (samples.few(len(images), extractor), row.get('departures', 'none')):
    if warning not in ('', 'none'):
      print(f'gdistill: {warning}', file=sys.stderr)
  text = json.dumps(storage.jsonable(row), indent=2)
  if args.out:
    storage.write_bytes(args.out, f'{text}\n'.encode())
  print(text)
  return 0
