"""gdistill edit: pictures drawn anew from half way, under another prompt or class."""

from collections.abc import Sequence

from gdistill import errors
from gdistill.cli import apps
from gdistill.cli import asked
from gdistill.cli import edge

_OF_INVERT = ('source_label', 'source_prompt', 'source_w', 'encoder', 'encode_steps')


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
  apps.add_negative(p)
  p.add_argument('--invert', action='store_true', help="the picture's own noise, by encoding it")
  apps.add_source(p, '; with --invert')
  return p


def main(argv: Sequence[str]) -> int:
  args = edge.parse(parser(), argv)
  return edge.call(lambda: _run(args), args.debug)


def _run(args) -> int:
  from gdistill.drawing import edit
  from gdistill.drawing import editor
  from gdistill.process import progress

  if not 0 < args.strength <= 1:
    raise errors.ConfigError(
      f'--strength={args.strength} must be above 0, where nothing changes, and at most 1, where '
      'nothing of the picture is left'
    )
  given = [name for name in _OF_INVERT if getattr(args, name) not in (None, '')]
  if given and not args.invert:
    raise errors.ConfigError(f'--{given[0]}={getattr(args, given[0])} is of --invert; add that')
  of = apps.check(args)
  negative, num_steps = asked.negative(args, of.card), of.walk.num_steps
  start, exact = edit.on_grid(args.strength, num_steps)
  counts, by = {'num_steps': num_steps, 'start': start}, None
  if args.invert:
    by = apps.encoder(args, of)
    stop = edit.same_time(start, num_steps, by.num_steps)
    if stop is None:
      raise errors.ConfigError(
        f'--encode_steps={by.num_steps} has no step at t = {start}/{num_steps}, where drawing '
        'begins; take a multiple of --num_steps, or another --strength'
      )
    counts['encode_stop'] = stop
  if not exact:
    progress.say(
      f'--strength={args.strength} is no step of the {num_steps} of this network; '
      f'{start / num_steps:g} is taken'
    )
  if start == num_steps and not args.invert:
    progress.say(
      'warning: this draws from noise alone, nothing of the picture is left; take less strength, '
      'or more steps'
    )

  def make(folder, frozen, encoder, batch_size):
    return editor.editor(folder, frozen, batch_size, encoder, negative)

  return apps.run(args, of, make, counts, 'editing', by)
