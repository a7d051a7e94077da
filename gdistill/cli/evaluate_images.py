"""gdistill evaluate --images: measures pictures of any origin against reference pictures."""

import json
import os
import sys

from gdistill.cli import command_line
from gdistill.cli import extractor_flags
from gdistill.cli import out_folder


def add_flags(p: command_line.Parser) -> None:
  """Adds --images, and the flags that are valid only with --images."""
  p.add_argument('--images', help='folder of pictures, or .npz file of pixels, to measure')
  p.add_argument(
    '--reference',
    help='with --images: what to compare the pictures with, an .npz file of gdistill statistics or '
    'other pictures',
  )
  p.add_argument(
    '--captions',
    help='with --images: folder with the caption of every picture in <name>.txt; adds the CLIP '
    'score to the row',
  )
  p.add_argument(
    '--clip', choices=('clip_l14', 'clip_b32'),
    help='with --captions: network of the CLIP score (default: clip_l14)',
  )  # fmt: skip
  p.add_argument(
    '--clip_weights',
    help='with --captions: file with the weights of the CLIP network (default: the file that '
    'gdistill convert writes)',
  )
  p.add_argument(
    '--tokenizer',
    help='with --captions: tokenizer.json of the CLIP network (default: beside the default file of '
    'the weights)',
  )
  p.add_argument(
    '--out',
    help='with --images: JSON file for the row of figures (default: the row is printed only)',
  )


def run(args) -> int:
  """Measures the pictures of --images against --reference and prints the metrics as JSON."""
  from gdistill import errors
  from gdistill.data import images as data
  from gdistill.devices import mesh as meshes
  from gdistill.evaluation import presets
  from gdistill.evaluation import samples
  from gdistill.evaluation.figures import clip_score
  from gdistill.process import progress

  _check_reference_and_out(args)
  preset = presets.get(args.preset) if args.preset else None
  captions = _captions_folder(args, preset)
  images = data.load(args.images, size=preset.size if preset else 0)
  for line in images.passed.notes(f'--images={args.images}'):
    progress.say(line)
  # A missing --reference is reported before the large weights of the feature network are read.
  if not os.path.exists(args.reference):
    raise errors.DataError(
      f'--reference={args.reference} does not exist; make the file with gdistill statistics, or '
      'give a folder of pictures'
    )
  extractor = extractor_flags.load(args)
  scorer = None
  if captions:
    sentences = samples.captions(images, captions)
    scorer = clip_score.Scorer.load(
      args.clip or 'clip_l14', args.clip_weights or '', args.tokenizer or ''
    )
  meshes.use_compile_cache()
  with out_folder.claimed_file(args.out):
    with progress.Progress('measuring', len(images)) as bar:
      clip = scorer.image.name if scorer else ''
      row = samples.evaluate(images, args.reference, extractor, bar.update, preset, clip)
    if scorer:
      row |= samples.clip_score(images, sentences, scorer)
    _print_row(row, args.out, samples.few(len(images), extractor))
  return 0


def _check_reference_and_out(args) -> None:
  """Raises ConfigError if --reference is missing, or if --out cannot be written as a file."""
  from gdistill import errors
  from gdistill.workdir import storage

  if not args.reference:
    raise errors.ConfigError(
      '--reference is missing; give a file that gdistill statistics wrote, or a folder of pictures'
    )
  if args.out:
    if os.path.isdir(args.out):
      raise errors.ConfigError(
        f'--out={args.out} is a folder; give the path of a JSON file to write'
      )
    storage.check_writable('--out', os.path.dirname(os.path.abspath(args.out)))


def _captions_folder(args, preset) -> str | None:
  """Returns the folder of the captions for the CLIP score, or None if there are no captions.

  If --captions is missing and --preset is a protocol for text-to-image networks, the returned
  folder is --reference.
  """
  from gdistill import errors

  captions = args.captions
  if preset and preset.prompts and not captions:
    if not os.path.isdir(args.reference):
      raise errors.ConfigError(
        f'--captions is missing, and --reference={args.reference} is not a folder of pictures with '
        'captions; give the folder with the captions as --captions'
      )
    captions = args.reference
  given = [name for name in ('clip', 'clip_weights', 'tokenizer') if getattr(args, name)]
  if given and not captions:
    raise errors.ConfigError(
      f'--{given[0]} is for the CLIP score, which needs captions; give the folder with the '
      'captions as --captions'
    )
  return captions


def _print_row(row: dict, out: str | None, few: str) -> None:
  """Prints the metrics `row` as JSON, and writes the JSON to the file `out` unless `out` is None.

  `few` is a warning that the number of pictures is small, or ''; all warnings are printed on
  stderr.
  """
  from gdistill.workdir import storage

  for warning in (few, row.get('departures', 'none')):
    if warning not in ('', 'none'):
      print(f'gdistill: {warning}', file=sys.stderr)
  text = json.dumps(storage.jsonable(row), indent=2)
  if out:
    storage.write_bytes(out, f'{text}\n'.encode())
  print(text)
