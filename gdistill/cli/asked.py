"""What commands that draw ask of a round: steps, w, seeds, and a negative prompt."""

import dataclasses
import math

from gdistill import errors


@dataclasses.dataclass(frozen=True)
class Walk:
  """How pictures are drawn."""

  num_steps: int
  sampler: str
  w: float
  seeds: list[int]


def walk(args, card: dict) -> Walk:
  """What the flags say, checked against the card; ConfigError where that round cannot."""
  from gdistill.drawing import sampling

  sampler = getattr(args, 'sampler', None) or sampling.own_sampler(card)
  num_steps = args.num_steps if args.num_steps is not None else card['num_steps'] or 64
  sampling.check_steps(args.folder, card, num_steps, sampler)
  seeds = numbers('seeds', args.seeds, 2**32)
  if args.scale is not None and not 1 <= args.scale <= 64:
    raise errors.ConfigError(f'--scale={args.scale} must be from 1 to 64')
  w = strength(args)
  check_strength(args.folder, card, '--w', w)
  return Walk(num_steps, sampler, w, seeds)


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
      if len(set(out)) < len(out):
        raise ValueError
  except ValueError:
    raise errors.ConfigError(
      f'--{flag}={text!r} must be numbers from 0 to {limit - 1}, such as 2 or 0..9 or 1,3,5; '
      'each once; a range has its smaller end first and at most 100000 numbers'
    ) from None
  return out


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
  from gdistill.process import progress

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


def negative(args, card) -> str | None:
  """The negative prompt, where there is a network that it changes; a warning otherwise."""
  from gdistill.process import progress

  if args.negative_prompt is None:
    return None
  if not (card.get('latents') or {}).get('text'):
    raise errors.ConfigError(
      f'--negative_prompt={args.negative_prompt!r}: {args.folder} is not conditioned on text; '
      'leave it out'
    )
  if card['guided']:
    return args.negative_prompt
  progress.say(
    'warning: --negative_prompt does nothing: stage one folded the unconditional pass into this '
    'student, and with it the place where a negative prompt would go'
  )
  return None
