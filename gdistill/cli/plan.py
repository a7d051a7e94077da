"""gdistill plan: prints what a run of a config would do, and starts nothing."""

from collections.abc import Sequence

from gdistill.cli import train


def main(argv: Sequence[str]) -> int:
  return train.main(argv, 'gdistill plan', plan=True)
