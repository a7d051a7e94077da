"""gdistill transfer: inverts pictures to noise and samples the noise under a new condition."""

from collections.abc import Sequence

from gdistill import errors
from gdistill.cli import command_line
from gdistill.cli import exit_codes
from gdistill.cli import picture_flags
from gdistill.cli import picture_job


def parser() -> command_line.Parser:
  p = picture_flags.parser(
    'transfer',
    'Style transfer by dual diffusion bridges: inverts a picture into noise under its own '
    'condition, and samples from that noise under --label or --prompt. --encoder inverts and '
    '--folder samples; a network that was not distilled to few steps can do both. With the same '
    'condition and the same w for both, figures.json says what the round trip loses.',
  )
  picture_flags.add_source(p)
  return p


def main(argv: Sequence[str]) -> int:
  args = command_line.parse(parser(), argv)
  return exit_codes.call(lambda: _run(args), args.debug)


def _run(args) -> int:
  from gdistill.drawing import editor

  checked = picture_flags.check(args)
  if len(checked.drawing.seeds) > 1:
    raise errors.ConfigError(
      f'--seeds={args.seeds}: a transfer adds no random noise, so that every seed would give the '
      'same result; leave --seeds out'
    )
  encoder = picture_flags.encoder(args, checked)
  num_steps = checked.drawing.num_steps
  counts = {'num_steps': num_steps, 'start': num_steps, 'encode_stop': encoder.num_steps}

  def make(folder, frozen, encoder_folder, batch_size):
    return editor.editor(folder, frozen, batch_size, encoder_folder)

  return picture_job.run(args, checked, make, counts, 'transferring', encoder)
