"""The command `gdistill convert`: published weights, or any of torch's files, to safetensors."""

import sys
from collections.abc import Sequence

from gdistill.cli import edge

NETWORKS = ('inception', 'lite0', 'clip_b32', 'clip_l14')
CHECKPOINT = 'checkpoint'


def parser() -> edge.Parser:
  p = edge.Parser(
    prog='gdistill convert',
    description="Converts a feature network's published weights to the safetensors that evaluation "
    'reads; evaluation never reads a pickle. The source is .safetensors, or .pth if torch is '
    'installed; torch then loads weights and no code. The sha256 of the source is checked if it is '
    "known, and stored. `checkpoint` converts any of torch's files (.ckpt, .pt, .pth, .bin): it "
    'writes the tensors under their names, for gdistill import.',
  )
  p.add_argument('network', choices=(*NETWORKS, CHECKPOINT))
  p.add_argument(
    '--source', default='', help='the downloaded file; default for lite0: the file of its package'
  )
  p.add_argument(
    '--out', default='',
    help='default: where evaluation looks for the weights; for checkpoint: SOURCE with the suffix '
    '.safetensors',
  )  # fmt: skip
  p.add_argument(
    '--any_source', action='store_true', help='accept a file whose sha256 is not the published one'
  )
  return p


def main(argv: Sequence[str]) -> int:
  args = edge.parse(parser(), argv)
  run = _checkpoint if args.network == CHECKPOINT else _run
  return edge.call(lambda: run(args), args.debug)


def _checkpoint(args) -> int:
  import pathlib

  from gdistill import errors
  from gdistill.convert import files

  source = pathlib.Path(args.source)
  if not source.is_file():
    raise errors.DataError(f"--source={source} is not there; name one of torch's files")
  out = pathlib.Path(args.out) if args.out else source.with_suffix('.safetensors')
  if out.suffix != '.safetensors' or out.exists():
    why = 'exists' if out.exists() else 'must end in .safetensors'
    raise errors.ConfigError(f'--out={out} {why}; name another file')
  arrays = files.checkpoint(source)
  files.write(out, arrays)
  print(f'{out}: {len(arrays)} arrays, {out.stat().st_size:,} bytes', file=sys.stderr)
  return 0


def _run(args) -> int:
  import pathlib

  from gdistill import errors
  from gdistill.convert import files
  from gdistill.evaluation.features import weights
  from gdistill.workdir import storage

  known = weights.SOURCES[args.network]
  source = pathlib.Path(args.source or files.of_package(args.network))
  if not source.is_file():
    raise errors.DataError(
      f'--source={source} is not there; get {known.file} ({known.where}) and name it'
    )
  out = pathlib.Path(args.out) if args.out else weights.default_path(args.network)
  sha256 = storage.digest(source)
  if known.sha256 and sha256 != known.sha256 and not args.any_source:
    raise errors.DataError(
      f'--source={source} has sha256 {sha256}, and {known.file} has {known.sha256}; download it '
      'again, or accept the file with --any_source'
    )
  params = files.params_from(args.network, files.read(source))
  digest = weights.write(out, args.network, params, sha256)
  print(f'{out}: {args.network}, sha256 of its arrays {digest}', file=sys.stderr)
  return 0
