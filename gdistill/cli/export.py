"""gdistill export: writes a finished round as a folder that diffusers loads."""

import sys
from collections.abc import Sequence

from gdistill.cli import command_line
from gdistill.cli import exit_codes
from gdistill.cli import out_folder


def parser() -> command_line.Parser:
  p = command_line.Parser(
    prog='gdistill export',
    description='Writes a finished round in the layout of a diffusers pipeline: unet/, scheduler/, '
    'a model card and, for a network on latents, vae/, text_encoder/ and tokenizer/. The w of a '
    'student is guidance_scale - 1 of the pipeline. `gdistill import` reads the folder back, bit '
    'for bit.',
  )
  p.add_argument('--folder', required=True, help='folder of a finished round: WORKDIR/<round>')
  p.add_argument('--out', required=True, help='folder to write: new or empty, on a local disk')
  p.add_argument(
    '--licence', default='',
    help="licence in the model card (default: the licence of the round's imported teacher)",
  )  # fmt: skip
  return p


def main(argv: Sequence[str]) -> int:
  args = command_line.parse(parser(), argv)
  return exit_codes.call(lambda: _run(args), args.debug)


def _run(args) -> int:
  import pathlib

  from gdistill.published import exporting
  from gdistill.rounds import folder as folders

  out_folder.check_new_local(args.out)
  out = pathlib.Path(args.out)
  folder = folders.read_folder(args.folder)
  with out_folder.atomic(out) as temporary:
    notes = exporting.run(folder, temporary, args.licence)
  for line in notes:
    print(f'note: {line}', file=sys.stderr)
  print(f'{out}: {", ".join(sorted(p.name for p in out.iterdir()))}', file=sys.stderr)
  return 0
