"""gdistill transfer: pictures encoded as what they are, and decoded as something else."""

from collections.abc import Sequence

from gdistill import errors
from gdistill.cli import apps
from gdistill.cli import edge


def parser() -> edge.Parser:
  p = apps.parser(
    'transfer',
    'Style transfer by two bridges: encodes a picture into noise under its own condition, and '
    'decodes that noise under --label or --prompt. The same condition and the same w twice are a '
    'round trip, and figures.json says what it loses. --folder decodes, --encoder encodes; a '
    'network that is not distilled to few steps does both.',
  )
  apps.add_source(p)
  return p


def main(argv: Sequence[str]) -> int:
  args = edge.parse(parser(), argv)
  return edge.call(lambda: _run(args), args.debug)


def _run(args) -> int:
  from gdistill.drawing import editor

  of = apps.check(args)
  if len(of.walk.seeds) > 1:
    raise errors.ConfigError(
      f'--seeds={args.seeds}: a transfer draws no noise of its own, and all seeds would give the '
      'same; leave it out'
    )
  by = apps.encoder(args, of)
  counts = {
    'num_steps': of.walk.num_steps, 'start': of.walk.num_steps, 'encode_stop': by.num_steps,
  }  # fmt: skip

  def make(folder, frozen, encoder, batch_size):
    return editor.editor(folder, frozen, batch_size, encoder)

  return apps.run(args, of, make, counts, 'transferring', by)
