"""The `gdistill` command: one file a subcommand. It may import anything; nothing imports it."""

import argparse
import difflib
import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
  'train': 'run a config: every round, the quick grid and the report',
  'plan': 'print what a config would do; start nothing',
  'sample': 'draw pictures from a finished round',
  'edit': 'draw pictures anew from half way, under another prompt or class',
  'inpaint': 'paint the masked part of pictures',
  'transfer': 'encode pictures as what they are, decode them as something else',
  'evaluate': 'measure a finished run over its grid of w and steps',
  'table': 'print figures of several files side by side, where they compare',
  'statistics': 'make reference statistics of a data set, for evaluate --reference',
  'convert': "turn a feature network's published weights into a file that evaluate reads",
  'import': 'turn a published network into a round that runs begin from',
  'export': 'turn a finished round into a folder that diffusers opens',
  'encode': "make a config's latents and text embeddings, which its runs then share",
  'prepare': 'turn a folder, an archive or a TensorFlow data set into records of one size',
}
_FILES = {'import': 'importing'}  # a word that Python keeps for itself


def program() -> None:
  """What the shell starts."""
  from gdistill.cli import edge

  edge.leave(main())


def main(argv: Sequence[str] | None = None) -> int:
  """Returns the exit code; each subcommand's file has `main(argv)`."""
  argv = sys.argv[1:] if argv is None else list(argv)
  if argv[:1] == ['--debug']:
    argv = [*argv[1:], '--debug']
  if argv and argv[0] in COMMANDS:
    name = _FILES.get(argv[0], argv[0])
    return importlib.import_module(f'gdistill.cli.{name}').main(argv[1:])
  parser = argparse.ArgumentParser(
    prog='gdistill',
    description='Distil a classifier-free-guided diffusion model into a few-step network '
    'with w as a dial.',
    formatter_class=argparse.RawDescriptionHelpFormatter,
    epilog='commands:\n'
    + '\n'.join(f'  {name:10} {text}' for name, text in COMMANDS.items())
    + '\n\n`gdistill COMMAND --help` says more.',
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
