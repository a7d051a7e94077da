"""gdistill export: a finished round to a folder that diffusers opens."""

import sys
from collections.abc import Sequence

from gdistill.cli import edge


def parser() -> edge.Parser:
  p = edge.Parser(
    prog='gdistill export',
    description='Writes unet/, scheduler/ and, in latent space, vae/, text_encoder/ and '
    "tokenizer/, as diffusers' pipelines load them, with a model card. A student's w is its "
    'guidance_scale - 1. `gdistill import` reads the folder back, bit for bit.',
  )
  p.add_argument('--folder', required=True, help='a finished round: WORKDIR/<round>')
  p.add_argument('--out', required=True, help='a folder that is empty or does not exist')
  p.add_argument('--licence', default='', help="default: that of the teacher's import")
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
