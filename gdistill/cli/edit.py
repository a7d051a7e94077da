"""gdistill edit: pictures drawn anew from half way, under another prompt or class."""

from collections.abc import Sequence

from gdistill import errors
from gdistill.cli import apps
from gdistill.cli import edge
from gdistill.cli import sample


def parser() -> edge.Parser:
  p = apps.parser(
    'edit',
    'Brings pictures to a time between data and noise, by adding noise or with --invert by '
    'encoding them, and draws on from there as --prompt or --label say.',
  )
  p.add_argument(
    '--strength', type=float, default=0.5,
    help='that time, from 0 (the picture) to 1 (noise): the nearest step of the network is taken '
    '(default 0.5)',
  )  # fmt: skip
  p.add_argument('--negative_prompt', help='what a guided teacher points away from')
  p.add_argument('--invert', action='store_true', help="the picture's own noise, by encoding it")
  apps.add_source(p, '; with --invert')
  return p


def main(argv: Sequence[str]) -> int:
  args = edge.parse(parser(), argv)
  return edge.call(lambda: _run(args), args.debug)


def _run(args) -> int:
  import numpy as np

  from gdistill import editing
  from gdistill import progress
  from gdistill.apps import edit

  if not 0 < args.strength <= 1:
    raise errors.ConfigError(
      f'--strength={args.strength} must be above 0, where nothing changes, and at most 1, where '
      'nothing of the picture is left'
    )
  asked = apps.opened(args)
  start, exact = edit.on_grid(args.strength, asked.num_steps)
  if not exact:
    progress.say(
      f'--strength={args.strength} lies between the {asked.num_steps} steps of this network; '
      f'{start / asked.num_steps:g} is taken'
    )
  if start == asked.num_steps and not args.invert:
    progress.say(
      'warning: this draws from noise alone, nothing of the picture is left; take less strength, '
      'or more steps'
    )
  counts = {'num_steps': asked.num_steps, 'start': start}
  found, more = None, {}
  if args.invert:
    found, steps, w = apps.encoder(args, asked)
    source = apps.condition(found, asked.frozen, args.source_label, args.source_prompt, 'source_')
    stop = edit.same_time(start, asked.num_steps, steps)
    if stop is None:
      raise errors.ConfigError(
        f'--encode_steps={steps} has no step at t = {start}/{asked.num_steps}, where drawing '
        'begins; take a multiple of --num_steps, or another --strength'
      )
    counts |= {'encode_steps': steps, 'encode_stop': stop}
    more = {'condition': source, 'w': w}
  elif given := [
    name
    for name in ('source_label', 'source_prompt', 'source_w', 'encoder', 'encode_steps')
    if getattr(args, name) not in (None, '')
  ]:
    raise errors.ConfigError(f'--{given[0]}={getattr(args, given[0])} is of --invert; add that')
  negative = sample.negative(args, asked.folder.card)
  sources = apps.Sources(args.image, asked)

  def rows_of(pictures):
    if not more:
      return {}
    count = len(pictures)
    rows = more['condition'].rows(count, 'from_')
    return {**rows, 'from_w': np.full(count, more['w'], np.float32)}

  def make(size):
    return editing.editor(asked.folder, asked.frozen, size, found, negative)

  return apps.run(args, asked, sources, make, rows_of, counts, 'editing')
