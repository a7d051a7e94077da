#!/usr/bin/env bash
# Trains a run on a Cloud TPU slice, controlled from your own machine.
#   bash launch/tpu.sh create | setup | run | status | logs | stop | delete | babysit
#     --run_id=ID --tpu_type=v5litepod-16 --zone=ZONE --project=PROJECT --bucket=gs://BUCKET --config=FILE
#     [--queued] [--spot] [--slices=1] [--runtime_version=V] [--valid_until=6h] [--secrets=FILE]
#     [--tail=100] [--keep] [--dry-run] [--config.key=value ...]
# The workdir is BUCKET/RUN_ID: the same RUN_ID resumes the run, on any slice. babysit creates the
# slice, sets it up, starts the run and replaces preempted slices until the run ends; then babysit
# deletes the slice, unless --keep is given. --dry-run checks the plan and prints the commands,
# without running them.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
(($#)) || die 'a command is missing; one of create setup run status logs stop delete babysit'
command=$1
shift
case $command in
  create | setup | run | status | logs | stop | delete | babysit) ;;
  -h | --help) usage ;;
  *) die "'$command' is not a command of tpu.sh; one of create setup run status logs stop delete babysit" ;;
esac
parse 'run_id tpu_type zone project bucket config slices runtime_version valid_until secrets tail queued! spot! keep!' "$@"
: "${SLICES:=1}" "${QUEUED:=}" "${SPOT:=}" "${KEEP:=}" "${TAIL:=100}" "${RUNTIME_VERSION:=}" "${VALID_UNTIL:=}"
: "${CLOUD_SECONDS:=120}"   # limit of a gcloud describe
: "${CREATE_SECONDS:=1800}" # limit of a gcloud create or delete
: "${SSH_SECONDS:=300}"     # limit of a command on the hosts
: "${SETUP_SECONDS:=2400}"  # limit of pip on the hosts
: "${PEER_SECONDS:=60}"     # a process notices within 20 s that another one died
: "${SSH_TRIES:=3}" "${TRY_SECONDS:=20}" "${POLL_SECONDS:=60}"
: "${BACKOFF_SECONDS:=60}" "${BACKOFF_MOST:=900}" # pauses between creates that found no capacity
: "${MAX_CREATES:=200}"                           # creates in a row without progress of the run
cd "$ROOT"

# ---- checks, before anything costs money

check_run_id
check_zone
need PROJECT
[[ $PROJECT =~ ^([a-z][-a-z0-9.]*:)?[a-z][-a-z0-9]{4,28}[a-z0-9]$ ]] ||
  die "--project='$PROJECT' must be a project id: 6 to 30 characters of a-z 0-9 -"
check_positive SLICES
NAME=$(resource_name "$RUN_ID")
[[ ${SLICES} == 1 ]] || QUEUED=1 # gcloud creates several slices only as one queued resource
[[ -z $VALID_UNTIL || $VALID_UNTIL =~ ^[1-9][0-9]*[smhd]$ ]] ||
  die "--valid_until='$VALID_UNTIL' must be a duration such as 6h"
[[ -z $VALID_UNTIL || $QUEUED ]] || die "--valid_until=$VALID_UNTIL needs --queued"
check_positive TAIL

check_run() {
  need TPU_TYPE CONFIG
  slice_of "$TPU_TYPE"
  check_bucket
  check_secrets
  [[ ! $CONFIG =~ ^/ && $CONFIG != *..* ]] || die "--config='$CONFIG' must be a path inside the repository, because the hosts get a copy of the repository"
  git ls-files --error-unmatch -- "${CONFIG%%:*}" >/dev/null 2>&1 ||
    die "--config='$CONFIG' is not tracked by git, and the hosts get tracked files only; run: git add ${CONFIG%%:*}"
  [[ -z $RUNTIME_VERSION || $RUNTIME_VERSION =~ ^[a-z0-9][a-z0-9.-]{0,62}$ ]] ||
    die "--runtime_version='$RUNTIME_VERSION' is not a valid name of a TPU software version, such as v2-alpha-tpuv5-lite"
  check_plan "$((CHIPS * SLICES))" "$SLICES"
  WORKDIR=$BUCKET/$RUN_ID
}

tell_plan() { # says what the last plan for this slice found, or how to make one
  [[ -z $DRY_RUN ]] || return 0
  local plan said
  plan=(python -m gdistill.main --plan --config="$CONFIG" --topology="$TPU_TYPE" ${OVERRIDES[@]+"${OVERRIDES[@]}"})
  ((SLICES == 1)) || plan[5]="--topology=${SLICES}x $TPU_TYPE"
  if said=$(JAX_PLATFORMS=cpu timeout --kill-after=10 300 "$PROGRAM" "${plan[@]:1}" --kept 2>/dev/null); then
    printf '%s\n' "$said" >&2
  else
    say "the steps of this config were not compiled for $TPU_TYPE yet; to see whether they fit, and how many hours they take, run: $(show "${plan[@]}")"
  fi
}

# ---- gcloud

POLICY=() KIND=''
REFUSED='quota limit|quota.*exceeded|PERMISSION_DENIED|UNAUTHENTICATED|INVALID_ARGUMENT'
WHERE=(--zone="$ZONE" --project="$PROJECT" --quiet)

describe() { # KIND FIELD -> the value of FIELD, or ABSENT; fails when gcloud gives no answer
  local said code=0 errors
  errors=$(mktemp)
  said=$(limited "$CLOUD_SECONDS" gcloud compute tpus "$1" describe "$NAME" "${WHERE[@]}" --format="value($2)" 2>"$errors") || code=$?
  if ((code == 0)); then
    echo "${said:-UNKNOWN}"
  elif grep -qiE 'NOT_FOUND|not found' "$errors"; then
    code=0
    echo ABSENT
  else
    cat "$errors" >&2
  fi
  rm -f "$errors"
  return "$code"
}

look() { # sets KIND and STATE of the resource that exists under NAME
  local tries
  if [[ $DRY_RUN ]]; then
    KIND=tpu-vm STATE=READY
    limited "$CLOUD_SECONDS" gcloud compute tpus queued-resources describe "$NAME" "${WHERE[@]}" --format='value(state.state)'
    limited "$CLOUD_SECONDS" gcloud compute tpus tpu-vm describe "$NAME" "${WHERE[@]}" --format='value(state)'
    return
  fi
  for ((tries = SSH_TRIES; tries > 0; tries--)); do
    if [[ $KIND == tpu-vm ]] && STATE=$(describe tpu-vm state) && [[ $STATE != ABSENT ]]; then return; fi
    KIND=queued-resources
    if STATE=$(describe queued-resources state.state); then
      [[ $STATE == ABSENT ]] || return 0
      KIND=tpu-vm
      if STATE=$(describe tpu-vm state); then return 0; fi
    fi
    ((tries == 1)) || nap "$TRY_SECONDS"
  done
  die "gcloud did not give the state of $NAME in $ZONE; its own error line is above" 1
}

create() { # tries once; returns 0 if the slice exists now, 10 to try again later, 1 if refused
  local version=$RUNTIME_VERSION what=() code=0 errors
  if [[ -z $version ]]; then
    case $GENERATION in
      v4) version=tpu-ubuntu2204-base ;;
      v5litepod) version=v2-alpha-tpuv5-lite ;;
      v5p) version=v2-alpha-tpuv5 ;;
      v6e) version=v2-alpha-tpuv6e ;;
    esac
  fi
  if [[ $QUEUED ]]; then
    what=(queued-resources create "$NAME" "${WHERE[@]}" --accelerator-type="$TPU_TYPE" --runtime-version="$version")
    if ((SLICES == 1)); then
      what+=(--node-id="$NAME")
    else
      what+=(--node-count="$SLICES" --node-prefix="$NAME")
    fi
    [[ -z $VALID_UNTIL ]] || what+=(--valid-until-duration="$VALID_UNTIL")
  else
    what=(tpu-vm create "$NAME" "${WHERE[@]}" --accelerator-type="$TPU_TYPE" --version="$version")
  fi
  [[ -z $SPOT ]] || what+=(--spot)
  if [[ $DRY_RUN ]]; then
    limited "$CREATE_SECONDS" gcloud compute tpus "${what[@]}"
    return
  fi
  errors=$(mktemp)
  exec {sink}> >(exec tee "$errors" >&2)
  tee=$!
  limited "$CREATE_SECONDS" gcloud compute tpus "${what[@]}" 2>&"$sink" || code=$?
  exec {sink}>&-
  wait "$tee" 2>/dev/null || nap 0.1 # until tee has written the last line to the file
  if ((code == 0)); then
    say "$NAME is created and costs money until you run: bash launch/tpu.sh delete --run_id=$RUN_ID --zone=$ZONE --project=$PROJECT"
  elif ((code == 124)); then
    code=10
  elif grep -qiE 'ALREADY_EXISTS|already exists' "$errors"; then
    say "$NAME exists already"
    code=0
  elif grep -qiE "$REFUSED" "$errors"; then
    say "$NAME was refused, and would be again: see gcloud's line above (to raise a quota, use the console: IAM & Admin, Quotas)"
    code=1
  elif grep -qiE 'capacity|stock.?out|RESOURCE_POOL_EXHAUSTED|RESOURCE_EXHAUSTED|requests per minute|UNAVAILABLE|INTERNAL|DEADLINE_EXCEEDED|ABORTED' "$errors"; then
    say "$NAME was not created: no capacity in $ZONE now"
    code=10
  else
    code=1
  fi
  rm -f "$errors"
  return "$code"
}

delete() {
  local code=0
  look
  if [[ $STATE == ABSENT && -z $DRY_RUN ]]; then
    say "$NAME does not exist in $ZONE: nothing to delete"
    return
  fi
  if [[ $DRY_RUN || $KIND == queued-resources ]]; then
    limited "$CREATE_SECONDS" gcloud compute tpus queued-resources delete "$NAME" "${WHERE[@]}" --force || code=$?
  fi
  if [[ $DRY_RUN || $KIND == tpu-vm ]]; then
    limited "$CREATE_SECONDS" gcloud compute tpus tpu-vm delete "$NAME" "${WHERE[@]}" || code=$?
  fi
  [[ -z $DRY_RUN ]] || return 0
  look
  [[ $STATE == ABSENT || $STATE == DELETING ]] ||
    die "$NAME in $ZONE is still $STATE after delete (gcloud exit code $code) and may cost money; delete it in the console" 1
  say "$NAME is deleted"
}

hosts() { # SECONDS COMMAND: runs COMMAND on every host; retries after a lost connection or a hang
  local tries code
  if ((SLICES > 1)); then
    set -- "$1" gcloud compute tpus queued-resources ssh "$NAME" --node=all --worker=all "${WHERE[@]}" --command="$2"
  else
    set -- "$1" gcloud compute tpus tpu-vm ssh "$NAME" --worker=all "${WHERE[@]}" --command="$2"
  fi
  for ((tries = SSH_TRIES; ; tries--)); do
    code=0
    limited "$@" || code=$?
    ((code == 255 || code == 124)) || return "$code"
    ((tries > 1)) || break
    say "a host of $NAME did not answer (exit code $code): trying again"
    nap "$TRY_SECONDS"
  done
  return "$code"
}

copy() { # FILE DESTINATION: copies FILE to every host
  local tries code
  if ((SLICES > 1)); then
    set -- queued-resources scp "$1" "$NAME:$2" --node=all
  else
    set -- tpu-vm scp "$1" "$NAME:$2"
  fi
  for ((tries = SSH_TRIES; ; tries--)); do
    code=0
    limited "$SSH_SECONDS" gcloud compute tpus "$@" --worker=all "${WHERE[@]}" || code=$?
    ((code)) || return 0
    ((tries > 1)) || break
    nap "$TRY_SECONDS"
  done
  return "$code"
}

worker() { # COMMAND...: runs worker.sh COMMAND on every host
  local line
  printf -v line '%q ' ${POLICY[@]+"${POLICY[@]}"} bash gdistill/src/launch/worker.sh "$@"
  hosts "$SSH_SECONDS" "${line% }"
}

status() { # prints one line per host; a new host has no worker.sh yet and is unready
  hosts "$SSH_SECONDS" "if [ -f gdistill/src/launch/worker.sh ]; then bash gdistill/src/launch/worker.sh status $RUN_ID; else echo worker \$HOSTNAME unready; fi"
}

setup() { # copies the tracked files as they are now, and secrets; makes the venv; safe to repeat
  local commit tree archive code=0
  commit=$(git -c user.name=launch -c user.email=launch@localhost stash create 2>/dev/null) || commit=''
  tree=$(git rev-parse "${commit:-HEAD}^{tree}") || return
  if [[ $DRY_RUN ]]; then archive=$tree.tar.gz; else archive=$(mktemp -d)/$tree.tar.gz || return; fi
  run git archive --format=tar.gz --output="$archive" "$tree" || return
  copy "$archive" "gdistill-$tree.tar.gz" || code=$?
  [[ $DRY_RUN ]] || rm -rf "$(dirname "$archive")"
  ((code == 0)) || return "$code"
  if [[ ${SECRETS:-} ]]; then
    hosts "$SSH_SECONDS" 'mkdir -p gdistill && (umask 077 && : >gdistill/env.new && chmod 600 gdistill/env.new)' || return
    copy "$SECRETS" gdistill/env.new || return
    hosts "$SSH_SECONDS" 'chmod 600 gdistill/env.new && mv gdistill/env.new gdistill/env' || return
  fi
  # Sources are not replaced while a program that was started from them runs.
  hosts "$SETUP_SECONDS" "set -e; mkdir -p gdistill; cd gdistill
if [ \"\$(cat src/.tree 2>/dev/null)\" != $tree ]; then
  for lock in runs/*/lock; do
    [ ! -e \"\$lock\" ] || flock --nonblock \"\$lock\" true || { echo \"launch: \$HOSTNAME is running other sources; to replace them, first run: tpu.sh stop\" >&2; exit 2; }
  done
  rm -rf src.new src.old; mkdir src.new; tar -xzf ../gdistill-$tree.tar.gz -C src.new; echo $tree >src.new/.tree
  [ ! -d src ] || mv src src.old; mv src.new src
fi
rm -rf src.old; rm -f ../gdistill-*.tar.gz; bash src/launch/worker.sh setup"
}

start() {
  # Each host restarts by itself, so the pause is longer than a process takes to notice a dead peer.
  local pause=$RESTART_SECONDS
  ((HOSTS * SLICES == 1 || pause > PEER_SECONDS)) || pause=$PEER_SECONDS
  local POLICY=(env MAX_RESTARTS="$MAX_RESTARTS" MAX_CRASHES="$MAX_CRASHES" RESTART_SECONDS="$pause"
    PROGRESS_SECONDS="$PROGRESS_SECONDS" RESTART_COUNT="${1:-0}")
  worker run "$RUN_ID" "$WORKDIR" "$CONFIG" ${OVERRIDES[@]+"${OVERRIDES[@]}"}
}

# ---- babysit

tell_costs() {
  local code=$?
  trap - EXIT
  [[ -z $CHILD ]] || kill "$CHILD" 2>/dev/null || true
  say "babysit ends; $NAME may still be there and cost money; to delete it, run: bash launch/tpu.sh delete --run_id=$RUN_ID --zone=$ZONE --project=$PROJECT"
  exit "$code"
}

finish() { # CODE LINE: prints the last log lines of every host, deletes the slice, exits with CODE
  say "$2"
  hosts "$SSH_SECONDS" "tail -n 20 gdistill/runs/$RUN_ID/log" >&2 || true
  if [[ $KEEP ]]; then
    say "--keep: $NAME stays and costs money until you run: bash launch/tpu.sh delete --run_id=$RUN_ID --zone=$ZONE --project=$PROJECT"
  else
    (delete) || say "$NAME was not deleted and may cost money; delete it in the console"
  fi
  trap - EXIT
  exit "$1"
}

judge() { # STATUS_LINES of all hosts -> ended CODE, running, again or unknown
  local lines running ended first
  lines=$(grep -E '^worker ' <<<"$1") || lines=''
  if (($(grep -c . <<<"$lines") < HOSTS * SLICES)); then
    echo unknown
    return
  fi
  running=$(grep -c ' running' <<<"$lines" || true)
  # Lines read "worker HOST exited CODE WHY TIME". The host that ended first knows the cause.
  ended=$(grep -E '^worker [^ ]+ exited [1-9]' <<<"$lines" | sort -k6,6n || true)
  first=$(grep -E ' exited [2-5] ' <<<"$ended" | head -n 1) || first=''
  [[ $first ]] || first=$(grep -E ' used-up ' <<<"$ended" | head -n 1) || first=''
  if [[ $first ]]; then
    echo "ended $(cut -d' ' -f4 <<<"$first")"
  elif ((running == HOSTS * SLICES)); then
    echo running
  elif [[ ! $ended ]] && ! grep -qvE ' running| exited 0 ' <<<"$lines"; then
    if ((running)); then echo running; else echo 'ended 0'; fi
  else
    echo again # some host is not set up, not started, lost, or was shut down
  fi
}

anew() { # sets the counts of tries back to 0 if the run has made progress
  local now
  now=$(progress_of "$WORKDIR")
  if [[ $now =~ ^[0-9]+$ && $best =~ ^[0-9]+$ ]]; then
    ((now <= best)) || creates=0 reruns=0 mute=0 best=$now
  elif ((ran >= PROGRESS_SECONDS)); then
    creates=0 reruns=0 mute=0
  fi
  ran=0
}

babysit() {
  local creates=0 reruns=0 replaced=0 silent=0 mute=0 wait_seconds=$BACKOFF_SECONDS code best ran=0 since=$SECONDS answer said
  trap tell_costs EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  best=$(progress_of "$WORKDIR")
  while :; do
    look
    case $STATE in
      ABSENT)
        anew
        ((++creates <= MAX_CREATES)) ||
          die "$NAME was created or requested $MAX_CREATES times without progress of the run; see the lines above, or set MAX_CREATES" 1
        code=0
        create || code=$?
        ((code == 0 || code == 10)) || {
          trap - EXIT
          exit "$code"
        }
        if ((code == 10)); then
          say "next try in $wait_seconds seconds"
          nap "$wait_seconds"
          wait_seconds=$((wait_seconds * 2 < BACKOFF_MOST ? wait_seconds * 2 : BACKOFF_MOST))
        else
          reruns=0
        fi
        continue
        ;;
      READY | ACTIVE) wait_seconds=$BACKOFF_SECONDS ;;
      PREEMPTED | SUSPENDED | SUSPENDING | TERMINATED | STOPPED)
        say "$NAME is $STATE: deleting it and requesting another slice"
        replaced=1
        delete
        continue
        ;;
      FAILED) # the cloud refused the queued resource, or had no capacity until --valid_until
        said=$(describe queued-resources state.failedData.error.message) || said=''
        say "$NAME is FAILED: ${said:-gcloud gives no reason}"
        delete
        if grep -qiE "$REFUSED" <<<"$said"; then
          trap - EXIT
          exit 1
        fi
        nap "$wait_seconds"
        wait_seconds=$((wait_seconds * 2 < BACKOFF_MOST ? wait_seconds * 2 : BACKOFF_MOST))
        continue
        ;;
      *) # CREATING, WAITING_FOR_RESOURCES, PROVISIONING, RESTARTING, DELETING, ...
        say "$NAME is $STATE"
        nap "$POLL_SECONDS"
        continue
        ;;
    esac
    since=$((SECONDS - ${POLL_SECONDS%.*}))
    if said=$(status); then answer=$(judge "$said"); else answer=unknown; fi
    case $answer in
      running) silent=0 mute=0 ran=$((ran + SECONDS - since)) ;;
      'ended 0') finish 0 "the run is done: $WORKDIR" ;;
      ended*)
        code=${answer#ended }
        worker stop "$RUN_ID" || true
        finish "$code" "the run ended with exit code $code, $(meaning "$code"); the last lines of every host:"
        ;;
      again)
        silent=0
        anew
        ((++reruns <= MAX_RESTARTS + 1)) ||
          finish 1 "the run was started $MAX_RESTARTS times on $NAME without progress"
        [[ $said != *running* ]] || worker stop "$RUN_ID" || true # all hosts must start together
        if ! setup || ! start "$((reruns > 1 || replaced))"; then say 'setting up or starting the hosts failed; trying again'; fi
        ;;
      unknown)
        # The slice may just have been preempted; a slice that stays READY and silent is replaced.
        ((++silent < SSH_TRIES)) || {
          ((++mute <= MAX_RESTARTS)) || finish 1 "$MAX_RESTARTS slices in a row did not answer: look at gcloud's lines above"
          say "$NAME is $STATE and does not answer: deleting it and requesting another slice"
          silent=0 replaced=1
          delete
          continue
        }
        ;;
    esac
    nap "$POLL_SECONDS"
  done
}

# ---- the command

case $command in
  create)
    check_run
    tell_plan
    create || { (($? == 10)) && die 'no slice was created: try later, in another zone or with --queued, or let babysit try' 1 || exit 1; }
    ;;
  setup)
    check_run
    setup
    ;;
  run)
    check_run
    start
    ;;
  status)
    look
    [[ $DRY_RUN ]] || echo "$KIND $NAME $STATE"
    [[ $STATE != READY && $STATE != ACTIVE && -z $DRY_RUN ]] || status
    ;;
  logs) worker logs "$RUN_ID" "$TAIL" ;;
  stop) SSH_SECONDS=$((SSH_SECONDS > 200 ? SSH_SECONDS : 200)) worker stop "$RUN_ID" ;;
  delete) delete ;;
  babysit)
    check_run
    if [[ $DRY_RUN ]]; then
      create
      setup
      start
      status
      KIND=queued-resources delete
    else
      babysit
    fi
    ;;
esac
