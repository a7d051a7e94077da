"""The command `gdistill export`: a finished round to a folder that diffusers opens."""

import sys
from collections.abc import Sequence

from gdistill.cli import edge


def parser() -> edge.Parser:
  p = edge.Parser(
    prog='gdistill export',
    description='Writes a finished round in the layout of a pipeline of diffusers: unet/ and '
    'scheduler/, vae/ for a network of latents, text_encoder/ and tokenizer/ for a network that '
    "reads text, and a model card. A student's w is guidance_scale - 1 in diffusers. `gdistill "
    'import` reads the folder back, bit for bit.',
  )
  p.add_argument('--folder', required=True, help='a finished round: WORKDIR/<round>')
  p.add_argument('--out', required=True, help='the new folder: empty, or it does not exist')
  p.add_argument('--licence', default='', help="default: the licence of the teacher's import")
  return p


def main(argv: Sequence[str]) -> int:
  args = edge.parse(parser(), argv)
  return edge.call(lambda: _run(args), args.debug)


def _run(args) -> int:
  import pathlib

  from gdistill.published import exporting
  from gdistill.rounds import folder as folders

  edge.check_new_here(args.out)
  out = pathlib.Path(args.out)
  folder = folders.read_folder(args.folder)
  with edge.whole(out) as temporary:
    notes = exporting.run(folder, temporary, args.licence)
  for line in notes:
    print(f'note: {line}', file=sys.stderr)
  print(f'{out}: {", ".join(sorted(p.name for p in out.iterdir()))}', file=sys.stderr)
  return 0
