"""gdistill statistics: writes the feature statistics of reference pictures to an .npz file."""

import os
import sys
from collections.abc import Sequence

from gdistill.cli import command_line
from gdistill.cli import config_file
from gdistill.cli import exit_codes
from gdistill.cli import extractor_flags
from gdistill.cli import out_folder


def parser() -> command_line.Parser:
  p = command_line.Parser(
    prog='gdistill statistics',
    description='Computes the feature statistics of a set of pictures once, for gdistill evaluate '
    '--reference.',
    epilog='--config.section.key=value overrides a key of the config.',
  )
  p.add_argument('--source', help='folder of pictures at any depth, or .npz file of pixels')
  p.add_argument(
    '--size', type=int,
    help='with --source: side in pixels of the square that pictures are cropped and resized to '
    '(default: pictures as they are, all of one size)',
  )  # fmt: skip
  p.add_argument(
    '--config',
    help='config whose data set is measured, at the picture size of its model; give --config or '
    '--source',
  )
  p.add_argument(
    '--split', choices=('train', 'held_out'),
    help='with --config: split of the data set to measure (default: train)',
  )  # fmt: skip
  p.add_argument(
    '--most', type=int,
    help='with --config: largest number of pictures to measure, a fixed random choice (default: '
    'all pictures)',
  )  # fmt: skip
  extractor_flags.add(p)
  p.add_argument('--out', required=True, help='.npz file to write')
  return p


def main(argv: Sequence[str]) -> int:
  argv = list(argv)
  overrides = [a for a in argv if a.startswith('--config.')]
  args = command_line.parse(parser(), [a for a in argv if a not in overrides])
  return exit_codes.call(lambda: _run(args, overrides), args.debug)


def _run(args, overrides) -> int:
  from gdistill import errors
  from gdistill.data import images as pictures
  from gdistill.data import source
  from gdistill.devices import mesh as meshes
  from gdistill.evaluation import samples
  from gdistill.process import progress
  from gdistill.recipe import reading
  from gdistill.training import assemble
  from gdistill.workdir import storage

  if bool(args.source) == bool(args.config):
    raise errors.ConfigError(
      'give either --source or --config: the pictures, or a config whose data set is measured'
    )
  given, others = ('source', ('split', 'most')) if args.source else ('config', ('size',))
  wrong = [f'--{n}={getattr(args, n)}' for n in others if getattr(args, n) is not None]
  wrong += overrides if args.source else []
  if wrong:
    raise errors.ConfigError(f'{wrong[0]} has no meaning with --{given}; leave this flag out')
  if not args.out.endswith('.npz'):
    raise errors.ConfigError(
      f'--out={args.out} must end in .npz; give a path such as reference.npz'
    )
  for name in ('most', 'size'):
    value = getattr(args, name)
    if value is not None and value < 1:
      raise errors.ConfigError(f'--{name}={value} must be at least 1')
  storage.check_writable('--out', os.path.dirname(os.path.abspath(args.out)))
  if args.source:
    images = pictures.load(args.source, '--source', args.size or 0)
    notes = images.passed.notes(f'--source={args.source}')
  else:
    run = assemble.Run(reading.from_config(config_file.load(args.config, overrides)))
    held_out = args.split == 'held_out'
    images = run.own_pictures[held_out]  # statistics need no classes, so no map of classes
    notes = source.notes(images)
    if args.most:
      images = images.subset(images.indices(args.most))
  for line in notes:
    progress.say(line)
  if len(images) < 2:
    raise errors.DataError(
      f'--{given} has {len(images)} picture; statistics need at least 2: give more pictures'
    )
  extractor = extractor_flags.load(args)
  meshes.use_compile_cache()
  with out_folder.claimed_file(args.out), progress.Progress('measuring', len(images)) as bar:
    if args.source:
      found = samples.statistics_of_images(images, extractor, bar.update)
    else:
      d = run.data
      split = (d.held_out_split or 'held out') if held_out else d.split
      found = samples.statistics_of_source(images, d.name, split, extractor, bar.update)
    storage.write_bytes(args.out, found.to_bytes())
  print(f'{args.out}: {len(images):,} pictures measured by {extractor.name}', file=sys.stderr)
  return 0
