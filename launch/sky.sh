#!/usr/bin/env bash
# Submits a run as a SkyPilot managed job; SkyPilot replaces lost machines.
#   bash launch/sky.sh submit | status | logs | stop
#     --run_id=ID --bucket=gs://BUCKET --config=FILE --tpu_type=v5litepod-8 | --gpus=H100:8
#     [--infra=gcp/us-west4] [--spot] [--secrets=FILE] [--dry-run] [--config.key=value ...]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
(($#)) || die 'a command is missing; one of submit status logs stop'
command=$1
shift
case $command in
  submit | status | logs | stop) ;;
  -h | --help) usage ;;
  *) die "'$command' is not a command of sky.sh; one of submit status logs stop" ;;
esac
parse 'run_id bucket config tpu_type gpus infra secrets spot!' "$@"
: "${SPOT:=}" "${SKY_SECONDS:=1800}"
cd "$ROOT"
check_run_id
NAME=$(resource_name "$RUN_ID")

submit() {
  local what accelerators extra=tpu pause=$RESTART_SECONDS lines=''
  need CONFIG
  check_bucket
  check_secrets
  [[ ${TPU_TYPE:-} || ${GPUS:-} ]] || die '--tpu_type is missing; give --tpu_type=v5litepod-8 or --gpus=H100:8'
  [[ -z ${TPU_TYPE:-} || -z ${GPUS:-} ]] || die "--tpu_type='$TPU_TYPE' and --gpus='$GPUS' exclude each other; give one of them"
  [[ ! $CONFIG =~ ^/ && $CONFIG != *..* ]] || die "--config='$CONFIG' must be a path inside the repository, because the machines get a copy of the repository"
  [[ -z ${INFRA:-} || $INFRA =~ ^[a-z0-9][A-Za-z0-9/_.-]*$ ]] || die "--infra='$INFRA' must be such as gcp/us-west4"
  if [[ ${TPU_TYPE:-} ]]; then
    slice_of "$TPU_TYPE"
    accelerators=tpu-$TPU_TYPE:1
    ((HOSTS == 1)) || pause=60 # longer than a process takes to notice that another one died
  else
    [[ $GPUS =~ ^[A-Za-z0-9-]+:([1-9][0-9]?)$ ]] || die "--gpus='$GPUS' must be NAME:COUNT such as H100:8"
    CHIPS=${BASH_REMATCH[1]} accelerators=$GPUS extra=cuda12
  fi
  check_plan "$CHIPS" 1
  lines=$(printf '%s\n' ${OVERRIDES[@]+"${OVERRIDES[@]}"})
  what=(sky jobs launch launch/sky.yaml --name="$NAME" --yes --detach-run --gpus="$accelerators"
    --env "WORKDIR=$BUCKET/$RUN_ID" --env "CONFIG=$CONFIG" --env "OVERRIDES=$lines"
    --env "JAX_EXTRA=$extra" --env "RESTART_SECONDS=$pause"
    --env "MAX_RESTARTS=$MAX_RESTARTS" --env "MAX_CRASHES=$MAX_CRASHES")
  [[ -z ${INFRA:-} ]] || what+=(--infra="$INFRA")
  if [[ $SPOT ]]; then what+=(--use-spot); else what+=(--no-use-spot); fi
  [[ -z ${SECRETS:-} ]] || what+=(--secret-file="$SECRETS")
  limited "$SKY_SECONDS" "${what[@]}"
}

case $command in
  submit) submit ;;
  status) limited "$SKY_SECONDS" sky jobs queue ;;
  logs) run sky jobs logs --name="$NAME" ;;
  stop) limited "$SKY_SECONDS" sky jobs cancel --name="$NAME" --yes ;;
esac
