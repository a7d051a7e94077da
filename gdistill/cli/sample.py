"""gdistill sample: pictures from a finished round, as PNGs and one grid."""

import sys
from collections.abc import Sequence

from gdistill import errors
from gdistill.cli import asked
from gdistill.cli import edge


def parser() -> edge.Parser:
  p = edge.Parser(
    prog='gdistill sample',
    description='Draws one picture for every label and seed. A picture depends on its own seed, '
    'label, w and the number of steps alone.',
  )
  p.add_argument('--folder', required=True, help='a finished round: WORKDIR/<round>')
  p.add_argument('--w', type=float, help='guidance strength, 0 = none (default 1)')
  p.add_argument('--guidance_scale', type=float, help='1 + w, as others write it')
  p.add_argument('--num_steps', type=int, help="default: the student's own; 64 for a teacher")
  p.add_argument('--sampler', help='default: what the round was distilled for, or ddim')
  p.add_argument('--labels', default=None, help='2, or 0..9, or 1,3,5 (default: every class)')
  p.add_argument('--prompt', action='append', help='of a text network; several are several columns')
  p.add_argument('--negative_prompt', help='what a guided teacher points away from')
  p.add_argument('--decoder', default='', help="tiny, or a folder (default: the network's own)")
  p.add_argument('--seeds', default='0..3', help='likewise (default 0..3)')
  p.add_argument('--scale', type=int, default=8, help='enlargement of the grid picture (default 8)')
  p.add_argument('--out', required=True, help='a folder that is empty or does not exist')
  return p


def main(argv: Sequence[str]) -> int:
  args = edge.parse(parser(), argv)
  return edge.call(lambda: _run(args), args.debug)


def _run(args) -> int:
  import numpy as np

  from gdistill.devices import mesh as meshes
  from gdistill.drawing import sampling
  from gdistill.drawing import sheets
  from gdistill.frozen import networks as frozen_networks
  from gdistill.process import interrupt
  from gdistill.process import progress
  from gdistill.rounds import folder as folders
  from gdistill.workdir import finished as finished_rounds
  from gdistill.workdir import storage

  card = finished_rounds.read_card(args.folder)
  walk, against = asked.walk(args, card), asked.negative(args, card)
  edge.check_new(args.out)
  meshes.use_compile_cache()
  meshes.make_cpu_devices(card['config']['mesh']['cpu_devices'])
  folder = folders.read_folder(args.folder)
  frozen = frozen_networks.read_frozen(folder, _decoder(args.decoder, folder))
  prompts = _prompts(args, folder, frozen)
  classes = len(prompts) if prompts else folder.settings.num_classes
  labels = asked.numbers(
    'labels', f'0..{classes - 1}' if args.labels is None else args.labels, classes
  )
  out = storage.path(args.out)

  pairs = [(label, seed) for seed in walk.seeds for label in labels]
  column = np.array(pairs)
  with interrupt.Interrupt() as stop, progress.Progress('sampling', len(pairs)) as bar:
    # Powers of two: a call of another size often finds its program compiled.
    size = min(1 << (len(pairs) - 1).bit_length(), 256)
    draw = sampling.Sampler(folder, walk.sampler, size, frozen, against)
    if prompts:
      draw = draw.with_prompts(prompts)
    pixels = draw(
      column[:, 1], column[:, 0], np.full(len(pairs), walk.w), walk.num_steps, stop, bar.update
    )
  kind = 'prompt' if prompts else 'label'
  for (label, seed), picture in zip(pairs, pixels, strict=True):
    storage.write_bytes(out / f'{kind}{label}_seed{seed}.png', sheets.png(picture))
  rows = pixels.reshape(len(walk.seeds), len(labels), *pixels.shape[1:])
  storage.write_bytes(out / 'grid.png', sheets.png(sheets.sheet(rows, args.scale)))
  calls = walk.num_steps * (2 if card['guided'] else 1)
  print(
    f'{len(pairs)} picture{"s" if pairs[1:] else ""} in {out}, grid.png has a column a {kind} '
    'and a row a seed; '
    f'{walk.sampler}, {walk.num_steps} step{"s" if walk.num_steps > 1 else ""}, {calls} network '
    f'call{"s" if calls > 1 else ""} each',
    file=sys.stderr,
  )
  return 0


def _decoder(name: str, folder) -> str:
  """The folder of another decoder, '' for the network's own."""
  from gdistill.frozen import networks as frozen_networks
  from gdistill.published import importing

  if not name:
    return ''
  if not folder.card.get('latents'):
    raise errors.ConfigError(f'--decoder={name}: {folder.path} draws pixels, which nothing decodes')
  if name != 'tiny':
    return name
  try:
    return frozen_networks.beside(folder, importing.TINY)
  except errors.CheckpointError as e:
    raise errors.ConfigError(
      f'--decoder=tiny: {folder.path} has no {importing.TINY}/ in it or beside it; name a folder, '
      'or import the teacher with --tiny'
    ) from e


def _prompts(args, folder, frozen) -> list[str]:
  """What the columns stand for; [] where they stand for labels."""
  from gdistill.frozen import prompts as run_prompts

  if frozen.text is None:
    if args.prompt:
      raise errors.ConfigError(
        f'--prompt={args.prompt!r}: {folder.path} is not conditioned on text; give --labels'
      )
    return []
  prompts = args.prompt or run_prompts.of_card(folder.card)
  if not prompts:
    raise errors.ConfigError(f'--prompt is missing: {folder.path} draws what a text says')
  return prompts
