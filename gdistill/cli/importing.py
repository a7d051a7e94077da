"""gdistill import: writes a published teacher as a finished round that runs can start from."""

import sys
from collections.abc import Sequence

from gdistill.cli import command_line
from gdistill.cli import exit_codes
from gdistill.cli import out_folder


def parser() -> command_line.Parser:
  p = command_line.Parser(
    prog='gdistill import',
    description='Reads a published network (safetensors and JSON, never code) and writes it as a '
    'finished round, with its autoencoder and text encoder in the same folder. --config.initial '
    'starts a run from that folder, and `gdistill sample` draws from it. A student that `gdistill '
    'export` wrote is read too.',
  )
  p.add_argument(
    '--source', required=True,
    help='published network: a diffusers folder (Stable Diffusion 1 and 2, DiT), or a .safetensors '
    'file (cin256-v2 of latent diffusion, DiT, SiT, ADM)',
  )  # fmt: skip
  p.add_argument('--out', required=True, help='folder to write: new or empty, on a local disk')
  p.add_argument(
    '--kind',
    default='',
    help='kind of network: stable_diffusion, cin256, dit, sit, adm64 or adm256 (default: told from '
    'the names of its files and arrays, which are the same for dit and sit)',
  )
  p.add_argument(
    '--null',
    default='',
    help='file of a second, unconditional network, which gives ADM its null condition',
  )
  p.add_argument(
    '--autoencoder', default='', help='folder or file of the autoencoder, if the source has none'
  )
  p.add_argument('--text', default='', help='folder of the text encoder, if the source has none')
  p.add_argument(
    '--tiny',
    default='',
    help='folder of a tiny autoencoder, for gdistill sample --decoder=tiny',
  )
  p.add_argument(
    '--licence',
    default='',
    help='licence of the network (default: the licence that the model card in the source states)',
  )
  p.add_argument(
    '--guided_channels', type=int, default=0,
    help='number of channels, from the first, that guidance changes: 3 is the rule by which the '
    'authors of DiT and SiT sample (default: 0, all channels)',
  )  # fmt: skip
  return p


def main(argv: Sequence[str]) -> int:
  args = command_line.parse(parser(), argv)
  return exit_codes.call(lambda: _run(args), args.debug)


def _run(args) -> int:
  import pathlib

  from gdistill.published import importing
  from gdistill.rounds import classes
  from gdistill.workdir import storage

  out_folder.check_new_local(args.out)
  out = pathlib.Path(args.out)
  with out_folder.atomic(out) as temporary:
    card = importing.run(
      args.source, storage.path(temporary), kind=args.kind, null=args.null,
      autoencoder=args.autoencoder, text=args.text, tiny=args.tiny, licence=args.licence,
      guided_channels=args.guided_channels,
    )  # fmt: skip
  if 'imported' not in card:
    print(f'{out}: a {card["stage"]} round that gdistill had exported', file=sys.stderr)
    return 0
  about = card['imported']
  print(
    f'{out}: {about["kind"]}, {card["parameters"]:,} parameters, predicts {card["predict"]}, '
    f'licence {about["licence"]}, null condition: {about["null_rule"]}',
    file=sys.stderr,
  )
  if card['class_names']:
    print(f'{out}: {classes.summary(card)}', file=sys.stderr)
  if card['null'] == 'none':
    print(
      'this network has no null condition, so it cannot be guided; for stage one, import it again '
      'with --null=FILE, its unconditional network',
      file=sys.stderr,
    )
  return 0
