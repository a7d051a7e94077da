"""Runs a config: python -m gdistill.main --config=configs/digits.py --workdir=runs/digits."""

import sys

from gdistill.cli import exit_codes
from gdistill.cli import train

if __name__ == '__main__':
  exit_codes.use_utf8()
  exit_codes.exit_process(train.main(sys.argv[1:]))
