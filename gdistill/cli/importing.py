"""gdistill import: a published teacher to a finished round that runs begin from."""

import sys
from collections.abc import Sequence

from gdistill.cli import edge


def parser() -> edge.Parser:
  p = edge.Parser(
    prog='gdistill import',
    description='Reads a published network (safetensors and JSON, never code) and writes a '
    'finished round, with its autoencoder and text encoder beside it, that --config.initial names '
    'and `gdistill sample` draws from. Also a student that `gdistill export` wrote.',
  )
  p.add_argument(
    '--source', required=True,
    help="a folder of diffusers' (Stable Diffusion 1 and 2, DiT), or a .safetensors file (latent "
    "diffusion's cin256-v2, DiT, SiT, ADM)",
  )  # fmt: skip
  p.add_argument('--out', required=True, help='a folder that is empty or does not exist')
  p.add_argument('--kind', default='', help='of what cannot be told from names: sit, adm64, ...')
  p.add_argument('--null', default='', help="ADM: the unconditional network's file, to guide by")
  p.add_argument('--autoencoder', default='', help='its folder or file, where the source has none')
  p.add_argument('--text', default='', help="the text encoder's folder, where the source has none")
  p.add_argument('--tiny', default='', help='a tiny autoencoder for --decoder=tiny: its folder')
  p.add_argument('--licence', default='', help='default: what the model card beside it says')
  return p


def main(argv: Sequence[str]) -> int:
  args = edge.parse(parser(), argv)
  return edge.call(lambda: _run(args), args.debug)


def _run(args) -> int:
  import pathlib

  from gdistill.published import importing
  from gdistill.workdir import storage

  edge.check_new_here(args.out)
  out = pathlib.Path(args.out)
  with edge.whole(out) as temporary:
    card = importing.run(
      args.source, storage.path(temporary), kind=args.kind, null=args.null,
      autoencoder=args.autoencoder, text=args.text, tiny=args.tiny, licence=args.licence,
    )  # fmt: skip
  if 'imported' not in card:
    print(f'{out}: the {card["stage"]} round that was exported', file=sys.stderr)
    return 0
  about = card['imported']
  print(
    f'{out}: {about["kind"]}, {card["parameters"]:,} parameters, predicts {card["predict"]}, '
    f'licence {about["licence"]}, null condition: {about["null_rule"]}',
    file=sys.stderr,
  )
  if card['null'] == 'none':
    print(
      'it has no null condition: it cannot be guided alone, and stage one needs --null=FILE, '
      'the unconditional network beside it',
      file=sys.stderr,
    )
  return 0
