"""The flags of all commands that sample pictures: number of steps, w, seeds, negative prompt."""

import dataclasses
import difflib
import re
from collections.abc import Sequence

from gdistill import errors
from gdistill.cli import command_line
from gdistill.recipe import class_names

# What --label, --labels and --source_label say about their values.
LABEL = (
  'by its name, or by its number, which counts from 0; if a text could be the name of one class '
  'and the number of another, write name:TEXT or number:N'
)
_RANGE = re.compile(r'(number:)?(\d{1,9})\.\.(\d{1,9})', re.ASCII)


@dataclasses.dataclass(frozen=True)
class Drawing:
  """How to sample pictures: sampler, number of steps, guidance strength w, seeds of the noise."""

  num_steps: int
  sampler: str
  w: float
  seeds: list[int]


def add(parser: command_line.Parser) -> None:
  """Adds the flags --w, --guidance_scale and --num_steps."""
  parser.add_argument('--w', type=float, help='guidance strength; 0 is no guidance (default 1)')
  parser.add_argument(
    '--guidance_scale', type=float,
    help='guidance scale 1 + w, as other programs state the guidance strength; give it or --w',
  )  # fmt: skip
  parser.add_argument(
    '--num_steps', type=int,
    help='number of sampling steps (default: the number that a student was distilled for; 64 for '
    'an undistilled network)',
  )  # fmt: skip


def add_negative(parser: command_line.Parser) -> None:
  """Adds the flag --negative_prompt."""
  parser.add_argument(
    '--negative_prompt',
    help='text that a guided text-conditioned teacher is guided away from, in place of the null '
    'condition; without effect on a student',
  )


def drawing(args, card: dict) -> Drawing:
  """Returns the sampler, number of steps, w and seeds that the flags in `args` ask for.

  `card` is the content of card.json of the finished round in --folder. Raises ConfigError if that
  round cannot sample with the number of steps, sampler or w that the flags ask for.
  """
  from gdistill.drawing import sampling

  sampler = getattr(args, 'sampler', None) or sampling.own_sampler(card)
  num_steps = args.num_steps if args.num_steps is not None else card['num_steps'] or 64
  sampling.check_steps(args.folder, card, num_steps, sampler)
  seeds = numbers('seeds', args.seeds, 2**32)
  if args.scale is not None and not 1 <= args.scale <= 64:
    raise errors.ConfigError(f'--scale={args.scale} must be a number from 1 to 64')
  w = strength(args, card)
  check_strength(args.folder, card, '--w', w)
  return Drawing(num_steps, sampler, w, seeds)


def numbers(flag: str, text: str, limit: int) -> list[int]:
  """Returns the numbers in `text`, such as '3', '0..9' (both ends included) or '1,3,5'.

  Raises ConfigError unless all numbers are from 0 to limit - 1 and no number is repeated.
  """
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
      'no number twice; a range begins with its smaller end and has at most 100000 numbers'
    ) from None
  return out


def labels(given: Sequence[str] | None, card: dict, count: int, prompts: bool) -> list[int]:
  """Returns the numbers of the classes that the values of --labels name, or of the prompts.

  Without values, returns all numbers below `count`. A value is the name or the number of a class,
  or several of them and ranges of numbers, separated by commas. Raises ConfigError if a value names
  no class or may mean two classes, or if a class is named twice.
  """
  if given is None:
    return list(range(count))
  if prompts:
    return numbers('labels', ','.join(given), count)
  from gdistill.rounds import classes

  out: list[int] = []
  for text in given:
    whole = classes.number(card, text, '--labels')  # a name may have commas
    parts = [text] if whole is not None else text.split(',')
    for part in map(str.strip, parts):
      found = _numbers_of_classes(part, card, count)
      twice = next((k for k in found if k in out), None)
      if -1 in found or twice is not None:
        names = classes.names_of(card)
        wrong = _no_class(part, names, count) if -1 in found else (
          f'class {classes.shown(card, [twice]).replace(" ", ", ", 1)}, is there twice'
        )  # fmt: skip
        known = f', or names of classes ({class_names.listed(names)})' if names else ''
        raise errors.ConfigError(
          f'--labels: {wrong}; give numbers from 0 to {count - 1}, such as 2 or 0..9 or 1,3,5'
          f'{known}; no class twice; a name with a comma is given alone, as one --labels of several'
        )
      out += found
  return out


def _no_class(part: str, names: Sequence[str], count: int) -> str:
  """Returns what is wrong with `part` of the value of --labels, which means no class."""
  if not part:
    return 'a class is missing, or a comma is too much'
  if _RANGE.fullmatch(part):
    return f'{part} is no range of numbers from 0 to {count - 1}, the smaller number first'
  if re.fullmatch(r'(number:)?[+-]?\d+', part, re.ASCII):
    return f'{part} is no number of a class: 0 to {count - 1}'
  near = difflib.get_close_matches(part.removeprefix('name:'), names, 1)
  return f'{part!r} is no class' + (f' (did you mean {near[0]!r}?)' if near else '')


def _numbers_of_classes(text: str, card: dict, count: int) -> list[int]:
  """Returns the class that `text` means, or the classes of a range such as 0..9; [-1] if none."""
  from gdistill.rounds import classes

  found = classes.number(card, text, '--labels')
  if found is not None:
    return [found]
  ends = _RANGE.fullmatch(text)
  if not ends or not int(ends[2]) <= int(ends[3]) < count:
    return [-1]
  every = range(int(ends[2]), int(ends[3]) + 1)
  # Every number of a range is read as if it were written alone, so that it never means two classes.
  return list(every) if ends[1] else [classes.number(card, str(k), '--labels') for k in every]


def strength(args, card: dict) -> float:
  """Returns the guidance strength w, from --w or from --guidance_scale = 1 + w.

  Raises ConfigError if --w and --guidance_scale are both given, or if w is negative, not finite or
  too large.
  """
  from gdistill.drawing import sampling

  if args.w is not None and args.guidance_scale is not None:
    raise errors.ConfigError(
      f'--w={args.w} and --guidance_scale={args.guidance_scale} mean the same; give only one'
    )
  scale = args.guidance_scale
  w = (1.0 if args.w is None else args.w) if scale is None else scale - 1.0
  given = f'--w={args.w}' if scale is None else f'--guidance_scale={scale}, which is w = {w:g},'
  sampling.check_w(given, w, card)
  return w


def check_strength(folder: str, card: dict, flag: str, w: float) -> None:
  """Raises ConfigError if the round in `folder` cannot sample with guidance strength `w`.

  Prints a warning if `w` is outside the range that a student was trained for. `card` is the content
  of card.json in `folder`; `flag`, '--w' or '--source_w', is the flag that error lines name.
  """
  from gdistill.process import progress

  if card.get('null') == 'none' and w:
    raise errors.ConfigError(
      f'{flag}={w}: {folder} has no null condition, so it cannot be guided; use {flag}=0, or '
      'import the network again with --null=FILE, its unconditional network'
    )
  low, high = card['w_min'], card['w_max']
  if not card['guided'] and not low <= w <= high:
    if not card['takes_w']:
      raise errors.ConfigError(
        f'{flag}={w}: this student was distilled for one w and takes only {flag}={low}; '
        f'use {flag}={low}'
      )
    progress.say(
      f'warning: {flag}={w} is outside {low} to {high}, the range this student was trained for'
    )


def negative(args, card) -> str | None:
  """Returns the negative prompt, or None if --negative_prompt is missing.

  For a student of guidance distillation, which cannot use a negative prompt, returns None and
  prints a warning. Raises ConfigError if --negative_prompt is given for a round that is not
  conditioned on text.
  """
  from gdistill.process import progress

  if args.negative_prompt is None:
    return None
  if not (card.get('latents') or {}).get('text'):
    raise errors.ConfigError(
      f'--negative_prompt={args.negative_prompt!r}: {args.folder} is not conditioned on text; '
      'leave --negative_prompt out'
    )
  if card['guided']:
    return args.negative_prompt
  progress.say(
    'warning: --negative_prompt does nothing: stage one distilled the unconditional pass into this '
    'student, so there is no pass that could read a negative prompt'
  )
  return None
