"""Parses a command's flags: an invalid command line ends in one error line and exit code 2."""

import argparse
import os
import sys
from collections.abc import Sequence

from gdistill import errors

# Flags whose values are words, in which a ~ is no home directory.
_WORDS = ('prompt', 'source_prompt', 'negative_prompt', 'label', 'source_label', 'labels')


class Parser(argparse.ArgumentParser):
  """An ArgumentParser that adds the flag --debug and raises ConfigError for invalid arguments."""

  def __init__(self, *args, **kwargs):
    super().__init__(*args, allow_abbrev=False, **kwargs)
    self.add_argument('--debug', action='store_true', help='print the traceback of an error too')

  def error(self, message: str):
    raise errors.ConfigError(f'{message}; see {self.prog} --help')


def parse(parser: Parser, argv: Sequence[str]) -> argparse.Namespace:
  """Returns the parsed arguments; prints one line and raises SystemExit(2) if `argv` is invalid.

  A ~ at the beginning of a path becomes the home directory, because a shell does not expand the ~
  of --out=~/pictures.
  """
  try:
    args = parser.parse_args(argv)
    for name, value in vars(args).items():
      if isinstance(value, str) and name not in _WORDS:
        setattr(args, name, os.path.expanduser(value))
      elif isinstance(value, list) and name not in _WORDS:
        setattr(args, name, [os.path.expanduser(v) for v in value])
    return args
  except errors.ConfigError as e:
    print(f'gdistill: {e}', file=sys.stderr)
    raise SystemExit(2) from None


def add_process_flags(parser: Parser) -> None:
  """Adds --coordinator, --num_processes and --process_id, for runs of several processes."""
  parser.add_argument(
    '--coordinator',
    help='HOST:PORT of process 0, in a run of several processes; not needed on TPU pods or under '
    'Slurm, Open MPI 4 and Kubernetes, where the processes find each other',
  )
  parser.add_argument('--num_processes', type=int, help='number of processes of the run')
  parser.add_argument(
    '--process_id', type=int, help='number of this process, from 0 to num_processes - 1'
  )
