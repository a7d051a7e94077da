"""gdistill sample: samples pictures from a finished round, as PNG files and as one grid."""

import sys
from collections.abc import Sequence

from gdistill import errors
from gdistill.cli import command_line
from gdistill.cli import drawing_flags
from gdistill.cli import exit_codes
from gdistill.cli import picture_job


def parser() -> command_line.Parser:
  p = command_line.Parser(
    prog='gdistill sample',
    description='Draws one image for every label or prompt and every seed. An image depends only '
    'on its own seed, its label or prompt, w and the number of steps.',
  )
  p.add_argument('--folder', required=True, help='folder of a finished round: WORKDIR/<round>')
  drawing_flags.add(p)
  p.add_argument(
    '--sampler',
    help='sampler: ddim, stochastic, ancestral or dpm_solver (default: the sampler that the round '
    'was distilled for; ddim for an undistilled network)',
  )
  p.add_argument(
    '--labels',
    action='append',
    help=f'classes to draw, each {drawing_flags.LABEL}; several as in 0..9 or 1,3,5 or cat,dog; '
    'may be given several times; for a text network numbers of its prompts (default: all)',
  )
  p.add_argument(
    '--prompt', action='append',
    help='text to draw, for a network that is conditioned on text; may be given several times',
  )  # fmt: skip
  drawing_flags.add_negative(p)
  p.add_argument(
    '--decoder', default='',
    help='autoencoder that decodes the latents: tiny, for the tiny one of the imported teacher, or '
    "a folder (default: the network's own)",
  )  # fmt: skip
  p.add_argument(
    '--seeds', default='0..3', help='seeds of the noise, such as 2, 0..9 or 1,3,5 (default 0..3)'
  )
  p.add_argument(
    '--scale', type=int, default=8, help='factor that enlarges the images in grid.png (default 8)'
  )
  p.add_argument(
    '--out', required=True,
    help='folder for the images: new, empty, or begun by the same command, which then resumes',
  )  # fmt: skip
  return p


def main(argv: Sequence[str]) -> int:
  args = command_line.parse(parser(), argv)
  return exit_codes.call(lambda: _run(args), args.debug)


def _run(args) -> int:
  from gdistill.devices import mesh as meshes
  from gdistill.frozen import networks as frozen_networks
  from gdistill.frozen import prompts as run_prompts
  from gdistill.rounds import folder as folders
  from gdistill.workdir import finished as finished_rounds

  card = finished_rounds.read_card(args.folder)
  drawing, negative = drawing_flags.drawing(args, card), drawing_flags.negative(args, card)
  if not (card.get('latents') or {}).get('text'):
    drawing_flags.labels(args.labels, card, card['model']['num_classes'], False)
  wanted, folder = picture_job.request(args, 'sampling', [args.folder]), None
  wanted['prompts'] = args.prompt or run_prompts.of_card(card)  # those of card.json may change
  meshes.use_compile_cache()
  meshes.make_cpu_devices(card['config']['mesh']['cpu_devices'])
  decoder = ''
  if args.decoder:
    folder = folders.read_folder(args.folder)
    decoder = _decoder(args.decoder, folder)
    found = frozen_networks.autoencoder(decoder)
    wanted['decoder_digest'] = frozen_networks.encoder_digest(found)
  with picture_job.held(args.out, wanted) as stop:
    folder = folder or folders.read_folder(args.folder)
    _draw(args, drawing, negative, folder, decoder, wanted, stop)
  return 0


def _draw(args, drawing, negative, folder, decoder, wanted, stop) -> None:
  """Draws the pictures that --out lacks, then writes grid.png and prints a summary.

  `decoder` is the path of an autoencoder, or '' for the network's own. `wanted` is the request.
  """
  import numpy as np

  from gdistill.data import pictures
  from gdistill.data import sheet_marks
  from gdistill.drawing import sampling
  from gdistill.drawing import sheets
  from gdistill.frozen import networks as frozen_networks
  from gdistill.rounds import classes
  from gdistill.workdir import storage

  frozen = frozen_networks.read_frozen(folder, decoder)
  prompts = _prompts(args, folder, frozen)
  kind, count = ('prompt', len(prompts)) if prompts else ('label', folder.settings.num_classes)
  labels = drawing_flags.labels(args.labels, folder.card, count, bool(prompts))
  shown = '' if prompts else f' ({classes.shown(folder.card, labels)})'
  names = {
    (label, seed): f'{kind}{label}_seed{seed}.png' for seed in drawing.seeds for label in labels
  }

  def make(todo, size):
    draw = sampling.Sampler(folder, drawing.sampler, size, frozen, negative)
    if prompts:
      draw = draw.with_prompts(prompts)

    def drawn(batch):
      column = np.array(batch)
      w = np.full(len(batch), drawing.w)
      return draw(column[:, 1], column[:, 0], w, drawing.num_steps)

    return drawn

  picture_job.draw_missing(args.out, wanted, names, _batch, make, stop)
  out = storage.path(args.out)
  channels = 3 if frozen.autoencoder else folder.settings.image_channels
  read = [pictures.decode(storage.read_bytes(out / n), str(out / n), channels)
          for n in names.values()]  # fmt: skip
  rows = np.stack(read).reshape(len(drawing.seeds), len(labels), *read[0].shape)
  grid = sheet_marks.marked(sheets.png(sheets.sheet(rows, args.scale)))
  storage.write_bytes(out / sheet_marks.GRID, grid)
  steps, more = drawing.num_steps, 's' if len(names) > 1 else ''
  calls = steps * (2 if folder.card['guided'] else 1)
  print(
    f'{len(names)} picture{more} in {out}; grid.png has a column for each '
    f'{kind}{shown} and a row for each seed; sampler {drawing.sampler}, {steps} '
    f'step{"s" if steps > 1 else ""}, {calls} network call{"s" if calls > 1 else ""} each',
    file=sys.stderr,
  )
  if note := sampling.rounding(folder.card, steps):
    print(f'note: {note}', file=sys.stderr)


def _batch(most: int) -> int:
  """Returns the batch size for `most` pictures: `most` rounded up to a power of two, at most 256.

  A later command for another number of pictures then often finds its compiled program in the
  compilation cache.
  """
  return min(1 << max(most - 1, 0).bit_length(), 256)


def _decoder(name: str, folder) -> str:
  """Returns the path of the autoencoder that --decoder=`name` asks for.

  Returns '', which means the network's own autoencoder, if --decoder is missing. Raises ConfigError
  if the round in `folder` samples pixels, or has no tiny autoencoder for --decoder=tiny.
  """
  from gdistill.frozen import networks as frozen_networks
  from gdistill.published import importing

  if not name:
    return ''
  if not folder.card.get('latents'):
    raise errors.ConfigError(
      f'--decoder={name}: {folder.path} draws pixels, not latents; leave --decoder out'
    )
  if name != 'tiny':
    return name
  try:
    return frozen_networks.beside(folder, importing.TINY)
  except errors.CheckpointError as e:
    raise errors.ConfigError(
      f'--decoder=tiny: there is no {importing.TINY}/ in {folder.path} or in the folder above; '
      'give --decoder=FOLDER of an autoencoder, or import the teacher again with --tiny=FOLDER'
    ) from e


def _prompts(args, folder, frozen) -> list[str]:
  """Returns the prompts to sample under, or [] for a network that is conditioned on labels."""
  from gdistill.frozen import prompts as run_prompts

  if frozen.text is None:
    if args.prompt:
      raise errors.ConfigError(
        f'--prompt={args.prompt!r}: {folder.path} is not conditioned on text; give --labels'
      )
    return []
  prompts = args.prompt or run_prompts.of_card(folder.card)
  if not prompts:
    raise errors.ConfigError(
      f'--prompt is missing: {folder.path} is conditioned on text; give --prompt=TEXT'
    )
  return prompts
