#!/usr/bin/env bash
# Submits a run as a Slurm job, from a login node that shares this folder with the compute nodes.
#   bash launch/slurm.sh submit | status | logs | stop
#     --run_id=ID --config=FILE --nodes=2 --gpus=8 [--cpu] [--workdir_root=runs] [--time=24:00:00]
#     [--partition=P] [--account=A] [--secrets=FILE] [--tail=100] [--dry-run] [--config.key=value ...]
# Two minutes before its time limit the job saves a checkpoint and puts itself back into the queue.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
(($#)) || die 'a command is missing; one of submit status logs stop'
command=$1
shift
case $command in
  submit | status | logs | stop) ;;
  -h | --help) usage ;;
  *) die "'$command' is not a command of slurm.sh; one of submit status logs stop" ;;
esac
parse 'run_id config nodes gpus workdir_root time partition account secrets tail cpu!' "$@"
: "${NODES:=1}" "${GPUS:=8}" "${CPU:=}" "${WORKDIR_ROOT:=runs}" "${TIME:=24:00:00}" "${TAIL:=100}" "${SLURM_SECONDS:=60}"
cd "$ROOT"
check_run_id
check_positive TAIL
NAME=gdistill-$RUN_ID LOGS=$ROOT/runs/.logs/$RUN_ID

queued() { limited "$SLURM_SECONDS" squeue --me --noheader --name="$NAME" --format='%i %T %r'; }

submit() {
  local what=() found
  need CONFIG
  check_positive NODES
  check_positive GPUS
  [[ $TIME =~ ^([0-9]+-)?[0-9]{1,3}(:[0-9]{2}){0,2}$ ]] || die "--time='$TIME' must be minutes, H:MM:SS or D-HH:MM:SS"
  [[ ${PARTITION:-p} =~ ^[A-Za-z0-9_.,-]+$ ]] || die "--partition='$PARTITION' is not a valid name of a partition: it must be of A-Z a-z 0-9 _ . , -"
  [[ ${ACCOUNT:-a} =~ ^[A-Za-z0-9_.-]+$ ]] || die "--account='$ACCOUNT' is not a valid name of an account: it must be of A-Z a-z 0-9 _ . -"
  check_secrets
  python_of_project
  if [[ $CPU ]]; then check_plan "$((NODES * $(cpu_devices_of_config)))" 1; else check_plan "$((NODES * GPUS))" 1; fi
  [[ $WORKDIR_ROOT == *://* || $WORKDIR_ROOT == /* ]] || WORKDIR_ROOT=$ROOT/$WORKDIR_ROOT
  # --requeue: without it the first lost node would end the run.
  what=(sbatch --parsable --job-name="$NAME" --nodes="$NODES" --ntasks-per-node=1 --time="$TIME"
    --requeue --open-mode=append --signal=B:TERM@120 --output="$LOGS/job.log" --chdir="$ROOT")
  [[ $CPU ]] || what+=(--gpus-per-node="$GPUS")
  [[ -z ${PARTITION:-} ]] || what+=(--partition="$PARTITION")
  [[ -z ${ACCOUNT:-} ]] || what+=(--account="$ACCOUNT")
  what+=(--export="ALL,SECRETS=${SECRETS:+$(realpath "$SECRETS")},GPUS=$([[ $CPU ]] || echo "$GPUS"),STOP_FILE=$LOGS/stop")
  what+=(launch/slurm.sbatch "$ROOT" "$WORKDIR_ROOT/$RUN_ID" "$CONFIG" ${OVERRIDES[@]+"${OVERRIDES[@]}"})
  if [[ $DRY_RUN ]]; then
    queued
  else
    found=$(queued) || die 'squeue failed or did not answer: nothing was submitted' 1
    [[ -z $found ]] || die "--run_id='$RUN_ID' is queued or running already: $found; stop it first, or choose another"
    mkdir -p "$LOGS"
    rm -f "$LOGS/stop"
  fi
  limited "$SLURM_SECONDS" "${what[@]}"
}

case $command in
  submit) submit ;;
  status) queued ;;
  logs) run tail -n "$TAIL" "$LOGS/job.log" ;;
  stop)
    run touch "$LOGS/stop" # tells the job not to put itself back into the queue
    limited "$SLURM_SECONDS" scancel --me --name="$NAME" --state=PENDING || true # a pending job takes no signal
    limited "$SLURM_SECONDS" scancel --me --name="$NAME" --signal=TERM --batch
    ;;
esac
