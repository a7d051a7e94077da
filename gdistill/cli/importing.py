"""The command `gdistill import`: a published network to a finished round that runs start from."""

import sys
from collections.abc import Sequence

from gdistill.cli import edge


def parser() -> edge.Parser:
  kinds = (
    'stable_diffusion, cin256, dit, sit, adm64 or adm256; default: the kind that the source tells; '
    "SiT needs --kind=sit, because its arrays have DiT's names"
  )
  p = edge.Parser(
    prog='gdistill import',
    description='Reads a published network (safetensors and JSON, never code) and writes it as a '
    'finished round, with its autoencoder and text encoder in the same folder. A run starts from '
    'the round with --config.initial=FOLDER, and `gdistill sample` draws from it. A folder that '
    '`gdistill export` wrote becomes the exported round again.',
  )
  p.add_argument(
    '--source', required=True,
    help='a folder of diffusers (Stable Diffusion 1 and 2, cin256-v2, DiT), a .safetensors file '
    "(latent diffusion's cin256-v2, DiT, SiT, ADM), or a folder that gdistill export wrote",
  )  # fmt: skip
  p.add_argument('--out', required=True, help='the new folder: empty, or it does not exist')
  p.add_argument('--kind', default='', help=kinds)
  p.add_argument('--null', default='', help='ADM: the file of the unconditional network')
  p.add_argument(
    '--autoencoder', default='', help='folder or file of the autoencoder, if the source has none'
  )
  p.add_argument('--text', default='', help='folder of the text encoder, if the source has none')
  p.add_argument(
    '--tiny', default='',
    help='folder of a tiny autoencoder, with which gdistill sample --decoder=tiny decodes',
  )  # fmt: skip
  p.add_argument(
    '--licence', default='', help="default: the licence in the model card, the source's README.md"
  )
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
      f'{out}: the network has no null condition, so it cannot be guided; to guide it or to start '
      'stage one from it, import it with --null=FILE, the unconditional network',
      file=sys.stderr,
    )
  return 0
