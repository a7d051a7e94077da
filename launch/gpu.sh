#!/usr/bin/env bash
# Trains a run on this machine, which has NVIDIA GPUs.
#   bash launch/gpu.sh setup | run
#     --run_id=ID --config=FILE [--gpus=1] [--workdir_root=runs] [--cuda=12|13] [--secrets=FILE] [--dry-run]
#     [--config.key=value ...]
# setup makes .venv with jax[cuda12] or jax[cuda13], whichever the driver supports. run trains under
# the restart policy; the same RUN_ID resumes the run.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
(($#)) || die 'a command is missing; one of setup run'
command=$1
shift
case $command in
  setup | run) ;;
  -h | --help) usage ;;
  *) die "'$command' is not a command of gpu.sh; one of setup run" ;;
esac
parse 'run_id config gpus workdir_root cuda secrets' "$@"
: "${GPUS:=}" "${WORKDIR_ROOT:=runs}" "${CUDA:=}"
cd "$ROOT"

setup_gpu() {
  local driver python
  if [[ -z $CUDA ]]; then
    driver=$(timeout 60 nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1) ||
      driver=''
    [[ $driver =~ ^([0-9]+)\. ]] || die 'nvidia-smi names no driver; install one, or give --cuda=12 or --cuda=13'
    CUDA=12
    ((BASH_REMATCH[1] < 580)) || CUDA=13
    ((BASH_REMATCH[1] >= 525)) || die "the NVIDIA driver $driver is too old for jax[cuda12], which needs 525 or newer"
  fi
  [[ $CUDA == 12 || $CUDA == 13 ]] || die "--cuda='$CUDA' must be 12 or 13"
  source launch/python.sh
  python=$(newest_python) || die 'gdistill needs Python 3.11 or newer; set PYTHON=/path/to/python3.13'
  if [[ -x .venv/bin/python ]]; then python=.venv/bin/python; else run "$python" -m venv .venv; fi
  run .venv/bin/python -m pip install --quiet --disable-pip-version-check -c "$(pins "$python")" -e . "jax[cuda$CUDA]"
}

run_gpu() {
  local workdir mine these=()
  check_run_id
  check_secrets
  [[ -z $GPUS ]] || check_positive GPUS
  [[ ${CUDA_VISIBLE_DEVICES:-} != -* ]] || die "CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES hides every GPU; unset it"
  if [[ ${CUDA_VISIBLE_DEVICES:-} ]]; then
    mine=${CUDA_VISIBLE_DEVICES//[!,]/}
    mine=$((${#mine} + 1))
    [[ ${GPUS:=$mine} == "$mine" ]] ||
      die "--gpus='$GPUS' is not the $mine that CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES names; leave out --gpus, or unset CUDA_VISIBLE_DEVICES"
  elif [[ $GPUS ]]; then
    these=(env "CUDA_VISIBLE_DEVICES=$(seq -s, 0 $((GPUS - 1)))")
  else
    GPUS=$(timeout 60 nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU ') || die '--gpus is missing, and nvidia-smi lists no GPU; give the number of GPUs, such as --gpus=1'
  fi
  check_plan "$GPUS" 1
  workdir=$WORKDIR_ROOT/$RUN_ID
  [[ $workdir == *://* || $workdir == /* ]] || workdir=$ROOT/$workdir
  [[ -z ${SECRETS:-} ]] || load_secrets "$SECRETS"
  set -- ${these[@]+"${these[@]}"} bash launch/supervise.sh --workdir="$workdir" -- "$PROGRAM" -m gdistill.main --config="$CONFIG" \
    --workdir="$workdir" ${OVERRIDES[@]+"${OVERRIDES[@]}"}
  if [[ $DRY_RUN ]]; then show "$@"; else exec "$@"; fi
}

case $command in
  setup) setup_gpu ;;
  run) run_gpu ;;
esac
