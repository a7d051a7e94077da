"""P16: how long an import of gdistill and `gdistill --help` take.

python benchmarks/startup.py
"""

import subprocess
import sys

import common

COMMANDS = {
  # Imported by name here: the commands import these modules only when they work, not for --help.
  'import of gdistill.training.run and gdistill.evaluation.grid.run': [
    '-c',
    'import sys, gdistill.training.run, gdistill.evaluation.grid.run; assert "jax" in sys.modules',
  ],
  'gdistill --help': ['-c', "from gdistill.cli import command; command.main(['--help'])"],
  'gdistill train --help': ['-m', 'gdistill.main', '--help'],
  'gdistill sample --help': [
    '-c',
    "from gdistill.cli import command; command.main(['sample', '--help'])",
  ],
}


def main() -> None:
  args = common.arguments(__doc__)

  def call(command):
    return lambda: subprocess.run([sys.executable, *command], check=True, capture_output=True)

  variants = {name: call(command) for name, command in COMMANDS.items()}
  taken = common.interleaved(variants, args.repeats, 0.0)
  common.show([common.row('P16', name, taken[name], '<= 3', 's') for name in COMMANDS])


if __name__ == '__main__':
  main()
