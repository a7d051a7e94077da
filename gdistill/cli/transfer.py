"""gdistill transfer: pictures encoded as what they are, and decoded as something else."""

from collections.abc import Sequence

from gdistill.cli import apps
from gdistill.cli import edge


def parser() -> edge.Parser:
  p = apps.parser(
    'transfer',
    'Style transfer by two bridges: encodes a picture into noise under its own condition, and '
    'decodes that noise under --label or --prompt. The same condition twice is a round trip, and '
    "figures.json says what it loses. --folder decodes, --encoder encodes; a network that isn't "
    'distilled to few steps does both.',
  )
  apps.add_source(p, '')
  return p


def main(argv: Sequence[str]) -> int:
  args = edge.parse(parser(), argv)
  return edge.call(lambda: _run(args), args.debug)


def _run(args) -> int:
  import numpy as np

  from gdistill import editing

  asked = apps.opened(args)
  found, steps, w = apps.encoder(args, asked)
  source = apps.condition(found, asked.frozen, args.source_label, args.source_prompt, 'source_')
  sources = apps.Sources(args.image, asked)

  def make(size):
    return editing.editor(asked.folder, asked.frozen, size, found)

  def rows_of(pictures):
    count = len(pictures)
    rows = source.rows(count, 'from_')
    return {**rows, 'from_w': np.full(count, w, np.float32)}

  counts = {
    'num_steps': asked.num_steps, 'start': asked.num_steps,
    'encode_steps': steps, 'encode_stop': steps,
  }  # fmt: skip
  return apps.run(args, asked, sources, make, rows_of, counts, 'transferring')
