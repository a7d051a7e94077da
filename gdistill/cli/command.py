"""The table of all `gdistill` commands, and the function that runs a command."""

import argparse
import difflib
import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
  'train': 'train all rounds of a config, evaluate the quick grid and write the report',
  'plan': 'print what a run of a config would do, and start nothing',
  'sample': 'draw images from a finished round',
  'edit': 'add noise to pictures, or invert them, and sample under another prompt or class',
  'inpaint': 'paint the masked part of pictures',
  'transfer': 'invert pictures to noise under one condition, and sample under another',
  'evaluate': 'measure a finished run over its grid of w and steps, or a folder of pictures',
  'table': 'print the figures of several files as one table, if their protocols agree',
  'statistics': 'compute reference statistics of pictures, for evaluate --reference',
  'convert': "convert a feature network's published weights to the file that evaluate reads",
  'import': 'convert a published network to a finished round that runs can start from',
  'export': 'convert a finished round to a folder that diffusers loads',
  'encode': "encode a config's pictures and captions once, into a cache that runs share",
  'prepare': 'convert a folder, an archive or a TensorFlow data set to records of one size',
}
_FILES = {'import': 'importing'}  # a module cannot be called `import`, a Python keyword


def program() -> None:
  """Runs the command in sys.argv and exits: the entry point of the shell command `gdistill`."""
  from gdistill.cli import exit_codes

  exit_codes.use_utf8()
  exit_codes.exit_process(main())


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command argv[0] with the flags argv[1:] and returns the command's exit code.

  If `argv` is None, the arguments are sys.argv[1:].
  """
  argv = sys.argv[1:] if argv is None else list(argv)
  if argv[:1] == ['--debug']:
    argv = [*argv[1:], '--debug']
  if argv and argv[0] in COMMANDS:
    name = _FILES.get(argv[0], argv[0])
    return importlib.import_module(f'gdistill.cli.{name}').main(argv[1:])
  parser = argparse.ArgumentParser(
    prog='gdistill',
    description='Distils a classifier-free-guided diffusion model into a few-step student that '
    'takes the guidance strength w as an input.',
    formatter_class=argparse.RawDescriptionHelpFormatter,
    epilog='commands:\n'
    + '\n'.join(f'  {name:11}{text}' for name, text in COMMANDS.items())
    + '\n\n`gdistill COMMAND --help` lists the flags of a command.',
  )
  parser.add_argument('command', metavar='COMMAND')
  if argv in ([], ['--debug']):
    parser.print_help()
    return 2
  if argv[0] not in ('-h', '--help'):
    near = difflib.get_close_matches(argv[0], COMMANDS, 1)
    hint = f'did you mean {near[0]}?' if near else f'take one of {", ".join(COMMANDS)}'
    print(f'gdistill: {argv[0]!r} is no command; {hint}', file=sys.stderr)
    return 2
  parser.parse_args(argv)
  return 2
