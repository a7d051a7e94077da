"""gdistill sample: pictures from a finished round, as PNGs and one grid."""

import math
import sys
from collections.abc import Sequence

from gdistill import errors
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


def numbers(flag: str, text: str, limit: int) -> list[int]:
  """'3', '0..9' (both ends in) or '1,3,5' as a list of numbers from 0 to limit - 1."""
  out: list[int] = []
  try:
    for part in text.split(','):
      first, dots, last = part.partition('..')
      ends = int(first), int(last) if dots else int(first)
      if min(ends) < 0 or max(ends) >= limit or ends[1] < ends[0]:
        raise ValueError
      if ends[1] - ends[0] >= 100_000:
        raise ValueError
      out += range(ends[0], ends[1] + 1)
  except ValueError:
    raise errors.ConfigError(
      f'--{flag}={text!r} must be numbers from 0 to {limit - 1}, such as 2 or 0..9 or 1,3,5; '
      'a range has its smaller end first and at most 100000 numbers'
    ) from None
  return out


def _run(args) -> int:
  import numpy as np

  from gdistill import checkpoints
  from gdistill import encode
  from gdistill import interrupt
  from gdistill import model
  from gdistill import parallel
  from gdistill import progress
  from gdistill import sampling
  from gdistill import show
  from gdistill import storage

  card = checkpoints.read_card(args.folder)
  parallel.use_compile_cache()
  parallel.make_cpu_devices(card['config']['mesh']['cpu_devices'])
  folder = model.read_folder(args.folder)
  frozen = encode.read_frozen(folder, _decoder(args.decoder, folder))
  prompts = _prompts(args, folder, frozen)
  classes = len(prompts) if prompts else folder.settings.num_classes
  labels = numbers('labels', f'0..{classes - 1}' if args.labels is None else args.labels, classes)
  seeds = numbers('seeds', args.seeds, 2**32)
  sampler = args.sampler or sampling.own_sampler(card)
  num_steps = args.num_steps if args.num_steps is not None else card['num_steps'] or 64
  sampling.check_steps(card, num_steps, sampler)
  w = strength(args)
  check_strength(args.folder, card, '--w', w)
  if not 1 <= args.scale <= 64:
    raise errors.ConfigError(f'--scale={args.scale} must be from 1 to 64')
  edge.check_new(args.out)
  out = storage.path(args.out)

  pairs = [(label, seed) for seed in seeds for label in labels]
  column = np.array(pairs)
  with interrupt.Interrupt() as stop, progress.Progress('sampling', len(pairs)) as bar:
    # Powers of two: a call of another size often finds its program compiled.
    size = min(1 << (len(pairs) - 1).bit_length(), 256)
    draw = sampling.Sampler(folder, sampler, size, frozen, negative(args, card))
    if prompts:
      draw = draw.with_prompts(prompts)
    pixels = draw(column[:, 1], column[:, 0], np.full(len(pairs), w), num_steps, stop, bar.update)
  kind = 'prompt' if prompts else 'label'
  for (label, seed), picture in zip(pairs, pixels, strict=True):
    storage.write_bytes(out / f'{kind}{label}_seed{seed}.png', png(picture))
  rows = pixels.reshape(len(seeds), len(labels), *pixels.shape[1:])
  storage.write_bytes(out / 'grid.png', png(show.sheet(rows, args.scale)))
  calls = num_steps * (2 if card['guided'] else 1)
  print(
    f'{len(pairs)} picture{"s" if pairs[1:] else ""} in {out}, grid.png has a column a {kind} '
    'and a row a seed; '
    f'{sampler}, {num_steps} steps, {calls} network calls each',
    file=sys.stderr,
  )
  return 0


def strength(args) -> float:
  """w of --w or --guidance_scale; ConfigError for both, and for what is no strength."""
  if args.w is not None and args.guidance_scale is not None:
    raise errors.ConfigError(
      f'--w={args.w} and --guidance_scale={args.guidance_scale} say the same: give one of them'
    )
  scale = args.guidance_scale
  w = (1.0 if args.w is None else args.w) if scale is None else scale - 1.0
  if not math.isfinite(w) or w < 0:
    given = f'--w={args.w}' if scale is None else f'--guidance_scale={scale}'
    raise errors.ConfigError(
      f'{given} must be a number of at least {"0" if scale is None else "1, which is w = 0"}'
    )
  return w


def check_strength(folder: str, card: dict, flag: str, w: float) -> None:
  """ConfigError where a round cannot be asked for this w, a warning where it was not taught it."""
  from gdistill import progress

  if card.get('null') == 'none' and w:
    raise errors.ConfigError(
      f'{flag}={w}: {folder} has no null condition and cannot be guided alone; take {flag}=0, or '
      'import it again with --null=FILE, its unconditional network'
    )
  low, high = card['w_min'], card['w_max']
  if not card['guided'] and not low <= w <= high:
    if not card['takes_w']:
      raise errors.ConfigError(f'{flag}={w} is fixed in this student: it takes only {flag}={low}')
    progress.say(f'warning: {flag}={w} is outside {low} to {high}, the range this was trained for')


def _decoder(name: str, folder) -> str:
  """The folder of another decoder, '' for the network's own."""
  from gdistill import encode
  from gdistill import importing

  if not name:
    return ''
  if not folder.card.get('latents'):
    raise errors.ConfigError(f'--decoder={name}: {folder.path} draws pixels, which nothing decodes')
  if name != 'tiny':
    return name
  try:
    return encode.beside(folder, importing.TINY)
  except errors.CheckpointError as e:
    raise errors.ConfigError(
      f'--decoder=tiny: {folder.path} has no {importing.TINY}/ in it or beside it; name a folder, '
      'or import the teacher with --tiny'
    ) from e


def _prompts(args, folder, frozen) -> list[str]:
  """What the columns stand for; [] where they stand for labels."""
  from gdistill import encode

  if frozen.text is None:
    for flag, given in (('prompt', args.prompt), ('negative_prompt', args.negative_prompt)):
      if given:
        raise errors.ConfigError(
          f'--{flag}={given!r}: {folder.path} is not conditioned on text; give --labels'
        )
    return []
  prompts = args.prompt or encode.class_prompts(folder)
  if not prompts:
    raise errors.ConfigError(f'--prompt is missing: {folder.path} draws what a text says')
  return prompts


def negative(args, card) -> str | None:
  """The negative prompt, where there is a network that it changes; a warning otherwise."""
  from gdistill import progress

  if args.negative_prompt is None:
    return None
  if not (card.get('latents') or {}).get('text'):
    raise errors.ConfigError(
      f'--negative_prompt={args.negative_prompt!r}: the network is not conditioned on text'
    )
  if card['guided']:
    return args.negative_prompt
  progress.say(
    'warning: --negative_prompt does nothing: stage one folded the unconditional pass into this '
    'student, and with it the place where a negative prompt would go'
  )
  return None


def png(pixels) -> bytes:
  """The file of uint8 [H, W, C]."""
  import io

  from gdistill import show

  buffer = io.BytesIO()
  show.picture(pixels).save(buffer, 'PNG')
  return buffer.getvalue()
