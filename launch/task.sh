#!/usr/bin/env bash
# One task of a Slurm step; notes its end time and exit code: srun reports only the highest code.
#   bash launch/task.sh FOLDER COMMAND...
set -euo pipefail
folder=$1
shift
trap : TERM INT HUP # Slurm signals the program too; this script must wait until it has saved
code=0
"$@" || code=$?
echo "$(date +%s%N) $code" >"$folder/$SLURM_PROCID"
exit "$code"
