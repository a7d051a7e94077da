# Functions that the launchers source: flags, checks of names and slices, dry runs, restart policy.
# shellcheck shell=bash disable=SC2034
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# Settings of the restart policy; the environment can override each of them.
: "${MAX_RESTARTS:=10}"        # restarts after 42, 134 or a kill, in a row without progress
: "${MAX_CRASHES:=3}"          # restarts in a row after other exit codes, probably a bug
: "${RESTART_SECONDS:=15}"     # pause before each restart
: "${PROGRESS_SECONDS:=1800}"  # an attempt this long is progress if the workdir cannot be listed
: "${LEASE_SECONDS:=70}"       # the lock of a killed process stays valid for a minute
: "${DRY_RUN:=}" "${SIGNALLED:=}"
WHY='' CHILD='' INTERRUPTED=''

say() { printf 'launch: %s\n' "$*" >&2; }

die() { # LINE [CODE]
  say "$1"
  exit "${2:-2}"
}

# ---- flags

usage() { # prints the comment at the top of the script, which is its help text
  sed -n '/^# shellcheck/d;2,/^[^#]/{s/^# \{0,1\}//p}' "$0"
  exit 0
}

parse() { # 'NAMES SWITCHES!' ARGUMENTS...: --name=value sets NAME; fills OVERRIDES
  local allowed=" $1 " arg name
  shift
  OVERRIDES=()
  for arg; do
    name=${arg#--} name=${name%%=*}
    case $arg in
      -h | --help) usage ;;
      --dry-run) DRY_RUN=1 ;;
      --config.*=*)
        [[ ! $name =~ (token|secret|password|api_key|apikey) ]] ||
          die "$name looks like a secret, and every user of the machine can read command lines; put NAME=value into a file and give --secrets=FILE"
        OVERRIDES+=("$arg")
        ;;
      --*)
        if [[ $name =~ ^[a-z_]+$ && $arg == *=* && $allowed == *" $name "* ]]; then
          printf -v "${name^^}" %s "${arg#*=}"
        elif [[ $name =~ ^[a-z_]+$ && $arg != *=* && $allowed == *" $name! "* ]]; then
          printf -v "${name^^}" 1
        else
          die "$arg is not an argument of $(basename "$0"); it takes$(described "$allowed")and overrides, --config.key=value"
        fi
        ;;
      *) die "$arg is not an argument of $(basename "$0"); see bash launch/$(basename "$0") --help" ;;
    esac
  done
}

described() { # ' run_id spot! ' -> ' --run_id= --spot '
  local name
  printf ' '
  for name in $1; do
    case $name in
      *!) printf -- '--%s ' "${name%!}" ;;
      *) printf -- '--%s= ' "$name" ;;
    esac
  done
}

need() { # NAME...: ends with an error if one of these variables is empty
  local name
  for name; do
    [[ ${!name:-} ]] || die "--${name,,} is missing; give --${name,,}=... or set $name"
  done
}

# ---- names

check_run_id() {
  need RUN_ID
  [[ $RUN_ID =~ ^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$ ]] ||
    die "--run_id='$RUN_ID' must be 1 to 64 of A-Z a-z 0-9 . _ - and begin with a letter or digit"
}

check_positive() { # NAME
  [[ ${!1} =~ ^[1-9][0-9]{0,5}$ ]] || die "--${1,,}='${!1}' must be a whole number from 1 to 999999"
}

check_cloud_name() { # NAME: checks for a name that Google Cloud and Kubernetes accept
  [[ ${!1} =~ ^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$ ]] ||
    die "--${1,,}='${!1}' must be 1 to 63 of a-z 0-9 -, begin with a letter and not end with -"
}

check_zone() {
  need ZONE
  [[ $ZONE =~ ^[a-z]+-[a-z]+[0-9]+-[a-z]$ ]] ||
    die "--zone='$ZONE' must be a zone such as us-west4-a"
}

check_bucket() {
  need BUCKET
  [[ $BUCKET =~ ^gs://[a-z0-9][a-z0-9._-]{1,220}[a-z0-9](/[A-Za-z0-9][A-Za-z0-9._-]*)*$ ]] ||
    die "--bucket='$BUCKET' must be gs://BUCKET or gs://BUCKET/FOLDER, without a / at the end; the disks of a slice are deleted with the slice"
}

resource_name() { # RUN_ID -> a name of at most 40 characters for Google Cloud and Kubernetes
  local name="gdistill-$1" sum
  if ((${#name} <= 40)) && [[ $name =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]]; then
    echo "$name"
    return
  fi
  # Run_1 and run-1 are two runs: a checksum of RUN_ID gives their machines different names.
  sum=$(printf %s "$1" | cksum | cut -d' ' -f1)
  name=$(printf %s "$name" | tr 'A-Z._' 'a-z--')
  printf '%s-%08x\n' "${name:0:31}" "$sum"
}

check_secrets() { # checks that SECRETS is a file of NAME=value lines that only its owner can read
  local mode line
  [[ ${SECRETS:-} ]] || return 0
  [[ -f $SECRETS && -r $SECRETS ]] || die "--secrets='$SECRETS' is not a file that this user can read"
  mode=$(stat -L -c %a "$SECRETS" 2>/dev/null || stat -L -f %Lp "$SECRETS")
  [[ $mode == [0-7]00 ]] || die "--secrets='$SECRETS' can be read by others (mode $mode); chmod 600 it"
  while IFS= read -r line || [[ $line ]]; do
    [[ -z $line || $line == '#'* || $line =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] ||
      die "--secrets='$SECRETS' must hold lines of NAME=value, and one line does not have that form"
  done <"$SECRETS"
}

load_secrets() { # FILE: exports each NAME=value line of FILE, without expanding the value
  local line
  while IFS= read -r line || [[ $line ]]; do
    [[ -z $line || $line == '#'* ]] || export "${line?}"
  done <"$1"
}

# ---- chips and hosts

slice_of() { # TPU_TYPE: sets CHIPS, HOSTS, CHIPS_PER_HOST, GENERATION
  # Types v4-N and v5p-N count TensorCores, two per chip; v5litepod-N and v6e-N count chips.
  local number
  [[ $1 =~ ^(v4|v5p|v5litepod|v6e)-([1-9][0-9]{0,4})$ ]] ||
    die "--tpu_type='$1' must be v4-N, v5p-N (N TensorCores, two per chip), v5litepod-N or v6e-N (N chips)"
  GENERATION=${BASH_REMATCH[1]} number=${BASH_REMATCH[2]}
  case $GENERATION in
    v4 | v5p)
      ((number % 8 == 0)) || die "--tpu_type='$1' must be a multiple of 8: 2 TensorCores per chip, 4 chips per host"
      CHIPS=$((number / 2)) CHIPS_PER_HOST=4
      ;;
    *)
      [[ " 1 4 8 16 32 64 128 256 " == *" $number "* ]] ||
        die "--tpu_type='$1': $GENERATION comes with 1, 4, 8, 16, 32, 64, 128 or 256 chips"
      CHIPS=$number CHIPS_PER_HOST=$((number <= 8 ? number : 4))
      ;;
  esac
  HOSTS=$((CHIPS / CHIPS_PER_HOST))
}

# ---- the run

python_of_project() {
  PROGRAM=${GDISTILL_PYTHON:-.venv/bin/python}
  command -v "$PROGRAM" >/dev/null ||
    die "GDISTILL_PYTHON='$PROGRAM' is not there; bash launch/test.sh makes .venv, or set GDISTILL_PYTHON to a Python that has gdistill installed"
}

check_plan() { # DEVICES SLICES: checks config and batch by --plan; adds the slices to OVERRIDES
  local code=0 said
  need CONFIG
  python_of_project
  (($2 == 1)) || OVERRIDES+=("--config.mesh.slices=$2")
  said=$(JAX_PLATFORMS=cpu timeout --kill-after=10 300 "$PROGRAM" -m gdistill.main --plan --config="$CONFIG" \
    --devices="$1" ${OVERRIDES[@]+"${OVERRIDES[@]}"} 2>&1 >/dev/null) || code=$?
  ((code == 0)) && return
  [[ -z $said ]] || printf '%s\n' "$said" >&2
  ((code != 124 && code != 137)) || say 'gdistill.main --plan did not end within 300 seconds'
  exit "$code"
}

cpu_devices_of_config() { # prints how many devices the config makes of a CPU in each process
  "$PROGRAM" -c 'import sys; from gdistill.cli import config_file
print(int(config_file.load(sys.argv[1], sys.argv[2:])["mesh"].get("cpu_devices", 1)))' \
    "${CONFIG:-}" ${OVERRIDES[@]+"${OVERRIDES[@]}"} 2>/dev/null || echo 1 # check_plan reports a bad config
}

# ---- run or print

show() { # prints a command, quoted so that it can be pasted into a shell
  local line
  printf -v line '%q ' "$@"
  printf '%s\n' "${line% }"
}

run() {
  if [[ $DRY_RUN ]]; then show "$@"; else "$@"; fi
}

limited() { # SECONDS COMMAND...: runs COMMAND with a time limit; returns 124 when it is exceeded
  local code=0
  if [[ $DRY_RUN ]]; then
    show timeout --kill-after=10 "$@"
    return
  fi
  timeout --kill-after=10 "$@" <&0 &
  CHILD=$! # in the background: bash runs a trap during `wait`, not during a foreground command
  wait "$CHILD" || code=$?
  if ((code == 124 || code == 137)); then
    say "no answer in $1 seconds from: ${*:2:5} ..."
    code=124
  fi
  return "$code"
}

nap() { # SECONDS: sleeps, and returns early on a signal
  local pid
  sleep "$1" &
  pid=$!
  [[ -z $SIGNALLED ]] || kill "$pid" 2>/dev/null || true # the signal came before the pause
  wait "$pid" || kill "$pid" 2>/dev/null || true
}

# ---- the restart policy

verdict() { # EXIT_CODE -> what follows from it: done, stop, restart or crash
  case $1 in
    0) echo 'done' ;;
    2 | 3 | 4 | 5) echo stop ;;
    42 | 134 | 129 | 130 | 137 | 143) echo restart ;;
    *) echo crash ;;
  esac
}

meaning() {
  case $1 in
    2) echo 'a bad config or argument' ;;
    3) echo 'data that cannot be read or used' ;;
    4) echo 'a checkpoint that cannot be read or written' ;;
    5) echo 'a loss or gradient that is not finite' ;;
    42) echo 'interrupted, and saved' ;;
    134) echo 'aborted: stuck, or another process of the run did not join or died' ;;
    129 | 130 | 137 | 143) echo "killed by signal $(($1 - 128))" ;;
    *) echo 'an unexpected failure; the last lines of the log give the reason' ;;
  esac
}

progress_of() { # WORKDIR -> a number that grows with the run; nothing if it cannot be listed
  if [[ ${PROGRESS_COMMAND:-} ]]; then
    timeout --kill-after=5 60 bash -c "$PROGRESS_COMMAND" 2>/dev/null || true
  else
    timeout --kill-after=5 60 "$PROGRAM" "$ROOT/launch/progress.py" "$1" 2>/dev/null || true
  fi
}

forward() { # SIGNAL: notes the first signal in SIGNALLED and sends SIGTERM to the child, once
  INTERRUPTED=1
  [[ -z $SIGNALLED ]] || return 0
  SIGNALLED=$1
  pass_on
}

pass_on() { [[ -z $CHILD ]] || kill -TERM "$CHILD" 2>/dev/null || true; }

child() { # COMMAND...: runs COMMAND, passes signals on to it, returns its exit code
  local code=0 before
  "$@" &
  CHILD=$!
  [[ -z $SIGNALLED ]] || pass_on
  while :; do
    INTERRUPTED='' before=$code code=0
    wait "$CHILD" || code=$?
    if ((code == 127 && before)); then
      code=$before # 127: the child had already ended when the signal interrupted `wait`
      break
    fi
    [[ $INTERRUPTED ]] || break
  done
  CHILD=''
  return "$code"
}

await_lease() { # WORKDIR: waits until the lock of a process killed on another machine has expired
  if ((${RESTART_COUNT:-0} > 0)) && [[ $1 == *://* || -e $1/lock.json ]]; then
    say "restarted on another machine: waiting $LEASE_SECONDS seconds, until the lock of the previous machine expires"
    nap "$LEASE_SECONDS"
  fi
}

keep_running() { # WORKDIR ATTEMPT...: repeats ATTEMPT as the policy says for its exit code; sets WHY
  local workdir=$1 restarts=0 crashes=0 best now code began what
  shift
  best=$(progress_of "$workdir")
  await_lease "$workdir"
  while :; do
    began=$SECONDS code=0
    "$@" || code=$?
    what=$(verdict "$code")
    WHY=$what
    case $what in
      'done') return 0 ;;
      stop)
        say "exit code $code, $(meaning "$code"): not restarted"
        return "$code"
        ;;
    esac
    if [[ $SIGNALLED ]]; then
      WHY=signalled
      say "stopped by $SIGNALLED with exit code $code; the same command resumes the run"
      return "$code"
    fi
    now=$(progress_of "$workdir")
    if [[ $now =~ ^[0-9]+$ && $best =~ ^[0-9]+$ ]]; then
      ((now <= best)) || restarts=0 crashes=0
    elif ((SECONDS - began >= PROGRESS_SECONDS)); then
      restarts=0 crashes=0
    fi
    [[ ! $now =~ ^[0-9]+$ ]] || ((now <= ${best:-0})) || best=$now
    if [[ $what == restart ]]; then restarts=$((restarts + 1)); else crashes=$((crashes + 1)); fi
    if ((restarts > MAX_RESTARTS || crashes > MAX_CRASHES)); then
      WHY=used-up
      say "exit code $code, $(meaning "$code"), and $((restarts + crashes - 1)) restarts made no progress: not restarted"
      return "${EXHAUSTED_CODE:-$code}"
    fi
    say "exit code $code, $(meaning "$code"): restart $restarts of $MAX_RESTARTS after kills, $crashes of $MAX_CRASHES after crashes, since the last progress"
    nap "$RESTART_SECONDS"
    if [[ $SIGNALLED ]]; then
      WHY=signalled
      return "$code"
    fi
  done
}
