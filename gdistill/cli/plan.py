"""gdistill plan: prints what a run of a config would do, without starting the run."""

from collections.abc import Sequence

from gdistill.cli import train


def main(argv: Sequence[str]) -> int:
  return train.main(argv, 'gdistill plan', plan=True)
