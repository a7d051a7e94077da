"""Trains a run: python -m gdistill.main --config=configs/digits.py --workdir=runs/digits [--plan].

The same as `gdistill train`.
"""

import sys

from gdistill.cli import edge
from gdistill.cli import train

if __name__ == '__main__':
  edge.leave(train.main(sys.argv[1:]))
