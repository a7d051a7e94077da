#!/usr/bin/env bash
# One task of a Slurm step: notes when it left and with what, because srun tells only the highest code.
#   bash launch/task.sh FOLDER COMMAND...
set -euo pipefail
folder=$1
shift
trap : TERM INT HUP # the program gets the signal too: wait for it to save
code=0
"$@" || code=$?
echo "$(date +%s%N) $code" >"$folder/$SLURM_PROCID"
exit "$code"
