#!/usr/bin/env bash
# Makes .venv and trains all stages on scikit-learn's digits; further arguments go to the run.
#   bash launch/local.sh [--config.seed=1 ...]
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
setup ''
exec "$VENV/bin/python" -m gdistill.main --config=configs/digits.py --workdir=runs/digits "$@"
