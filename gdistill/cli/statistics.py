"""gdistill statistics: what pictures are measured against, in one file with its protocol."""

import os
import sys
from collections.abc import Sequence

from gdistill.cli import edge


def parser() -> edge.Parser:
  p = edge.Parser(
    prog='gdistill statistics',
    description='Measures a set of pictures once, for gdistill evaluate --reference.',
    epilog='--config.section.key=value overrides a key of the config.',
  )
  p.add_argument('--source', help='a folder of pictures at any depth, or an .npz file')
  p.add_argument('--size', type=int, help='of the source: pixels of the square it is brought to')
  p.add_argument('--config', help="instead: the data set of a config, at its model's size")
  p.add_argument('--split', choices=('train', 'held_out'), help='of the config; default: train')
  p.add_argument('--most', type=int, help='of the config: so many, drawn once and for all')
  edge.add_extractor(p)
  p.add_argument('--out', required=True, help='the .npz file to write')
  return p


def main(argv: Sequence[str]) -> int:
  argv = list(argv)
  overrides = [a for a in argv if a.startswith('--config.')]
  args = edge.parse(parser(), [a for a in argv if a not in overrides])
  return edge.call(lambda: _run(args, overrides), args.debug)


def _run(args, overrides) -> int:
  from gdistill import errors
  from gdistill.data import images as pictures
  from gdistill.devices import mesh as meshes
  from gdistill.evaluation import samples
  from gdistill.process import progress
  from gdistill.recipe import reading
  from gdistill.training import assemble
  from gdistill.workdir import storage

  if bool(args.source) == bool(args.config):
    raise errors.ConfigError('give one of --source and --config: which pictures')
  given, others = ('source', ('split', 'most')) if args.source else ('config', ('size',))
  wrong = [f'--{n}={getattr(args, n)}' for n in others if getattr(args, n) is not None]
  wrong += overrides if args.source else []
  if wrong:
    raise errors.ConfigError(f'{wrong[0]} says nothing where --{given} is given; leave it out')
  if not args.out.endswith('.npz'):
    raise errors.ConfigError(f'--out={args.out} must end in .npz')
  for name in ('most', 'size'):
    value = getattr(args, name)
    if value is not None and value < 1:
      raise errors.ConfigError(f'--{name}={value} must be at least 1')
  storage.check_writable('--out', os.path.dirname(os.path.abspath(args.out)))
  if args.source:
    images = pictures.load(args.source, '--source', args.size or 0)
  else:
    run = assemble.Run(reading.from_config(edge.load_config(args.config, overrides)))
    held_out = args.split == 'held_out'
    images = run.pictures[held_out]
    if args.most:
      images = images.subset(images.indices(args.most))
  if len(images) < 2:
    raise errors.DataError(f'--{given}: there is {len(images)} picture; statistics need at least 2')
  extractor = edge.extractor(args)
  meshes.use_compile_cache()
  with progress.Progress('measuring', len(images)) as bar:
    if args.source:
      found = samples.statistics_of_images(images, extractor, bar.update)
    else:
      d = run.data
      split = (d.held_out_split or 'held out') if held_out else d.split
      found = samples.statistics_of_source(images, d.name, split, extractor, bar.update)
  storage.write_bytes(args.out, found.to_bytes())
  print(f'{args.out}: {len(images):,} pictures measured by {extractor.name}', file=sys.stderr)
  return 0
