"""P16: how long the program takes to be imported and to say --help.

python benchmarks/startup.py
"""

import subprocess
import sys

import common

COMMANDS = {
  # By name: the commands import these when they start to work, and not for --help.
  'import of gdistill.pipeline and gdistill.evaluate': [
    '-c',
    'import sys, gdistill.pipeline, gdistill.evaluate; assert "jax" in sys.modules',
  ],
  'gdistill --help': ['-c', "import gdistill.cli, sys; gdistill.cli.main(['--help'])"],
  'gdistill train --help': ['-m', 'gdistill.main', '--help'],
  'gdistill sample --help': ['-c', "import gdistill.cli; gdistill.cli.main(['sample', '--help'])"],
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
