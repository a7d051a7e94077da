"""gdistill plan: what a config would do."""

from collections.abc import Sequence

from gdistill.cli import train


def main(argv: Sequence[str]) -> int:
  return train.main(argv, 'gdistill plan', plan=True)
