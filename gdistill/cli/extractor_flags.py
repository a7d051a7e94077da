"""The flags that choose the feature network of an evaluation: --extractor, --weights, --resize."""

import argparse

from gdistill import errors
from gdistill.cli import command_line


def add(parser: command_line.Parser, default_of_run: str = '') -> None:
  """Adds the flags --extractor, --weights and --resize.

  The help text of --extractor has `default_of_run` after the name of the default network.
  """
  parser.add_argument(
    '--extractor', choices=('inception', 'lite0', 'clip_b32', 'clip_l14'),
    help=f'feature network of the figures (default: inception, the network of FID{default_of_run})',
  )  # fmt: skip
  parser.add_argument(
    '--weights',
    help='file with the weights of the feature network (default: the file that gdistill convert '
    'writes)',
  )
  parser.add_argument(
    '--resize', choices=('tf1', 'half_pixel'),
    help='how the Inception network resizes pictures: tf1 as the reference implementations do '
    '(default), half_pixel as pytorch-fid does',
  )  # fmt: skip


def load(args: argparse.Namespace):
  """Returns the feature network that --extractor chooses, with its weights loaded."""
  from gdistill.evaluation.features import extractors

  name = args.extractor or 'inception'
  if args.resize and name != 'inception':
    raise errors.ConfigError(
      f'--resize={args.resize} is for --extractor=inception; {name} resizes in its own way, so '
      'leave --resize out'
    )
  options = {'resize': args.resize} if args.resize else {}
  return extractors.load(name, args.weights or '', **options)
