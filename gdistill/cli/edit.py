"""gdistill edit: noises or inverts pictures up to a time t, then samples from t to 0."""

from collections.abc import Sequence

from gdistill import errors
from gdistill.cli import command_line
from gdistill.cli import drawing_flags
from gdistill.cli import exit_codes
from gdistill.cli import picture_flags
from gdistill.cli import picture_job

_INVERT_FLAGS = ('source_label', 'source_prompt', 'source_w', 'encoder', 'encode_steps')


def parser() -> command_line.Parser:
  p = picture_flags.parser(
    'edit',
    'Adds noise to pictures up to a time t, or with --invert inverts them up to t, and samples '
    'from t to 0 under the condition that --prompt or --label gives.',
  )
  p.add_argument(
    '--strength', type=float, default=0.5,
    help='the time t, above 0 (the picture itself) and up to 1 (pure noise), rounded to the '
    'nearest sampling step of the network (default 0.5)',
  )  # fmt: skip
  drawing_flags.add_negative(p)
  p.add_argument(
    '--invert', action='store_true',
    help='turn each picture into its own noise with --encoder, instead of adding random noise',
  )  # fmt: skip
  picture_flags.add_source(p, '; with --invert')
  return p


def main(argv: Sequence[str]) -> int:
  args = command_line.parse(parser(), argv)
  return exit_codes.call(lambda: _run(args), args.debug)


def _run(args) -> int:
  from gdistill.drawing import edit
  from gdistill.drawing import editor
  from gdistill.process import progress

  if not 0 < args.strength <= 1:
    raise errors.ConfigError(
      f'--strength={args.strength} must be above 0, where nothing changes, and at most 1, where '
      'nothing of the picture is left'
    )
  given = [name for name in _INVERT_FLAGS if getattr(args, name) not in (None, '')]
  if given and not args.invert:
    raise errors.ConfigError(
      f'--{given[0]}={getattr(args, given[0])} needs --invert; add --invert, or leave '
      f'--{given[0]} out'
    )
  checked = picture_flags.check(args)
  negative = drawing_flags.negative(args, checked.card)
  num_steps = checked.drawing.num_steps
  start, exact = edit.on_grid(args.strength, num_steps)
  counts, encoder = {'num_steps': num_steps, 'start': start}, None
  if args.invert:
    encoder = picture_flags.encoder(args, checked)
    stop = edit.same_time(start, num_steps, encoder.num_steps)
    if stop is None:
      raise errors.ConfigError(
        f'--encode_steps={encoder.num_steps} has no step at t = {start}/{num_steps}, where '
        f'sampling begins; use a multiple of --num_steps={num_steps}, or another --strength'
      )
    counts['encode_stop'] = stop
  if not exact:
    progress.say(
      f'--strength={args.strength} is not one of the {num_steps} steps of this network; the '
      f'nearest step, {start / num_steps:g}, is used'
    )
  if start == num_steps and not args.invert:
    progress.say(
      'warning: sampling begins at t = 1, pure noise, so nothing of the picture is left; use a '
      'smaller --strength, or a round of more steps'
    )

  def make(folder, frozen, encoder_folder, batch_size):
    return editor.editor(folder, frozen, batch_size, encoder_folder, negative)

  return picture_job.run(args, checked, make, counts, 'editing', encoder)
