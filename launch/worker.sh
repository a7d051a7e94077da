#!/usr/bin/env bash
# Runs on each host of a TPU slice, in ~/gdistill/src; tpu.sh calls it over ssh.
#   bash launch/worker.sh setup | run RUN_ID WORKDIR CONFIG [--config.key=value ...] |
#                         status RUN_ID | logs RUN_ID LINES | stop RUN_ID
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
(($#)) || die 'worker.sh needs a command; use tpu.sh, which calls worker.sh'
command=$1 BASE=$(dirname "$ROOT")
shift
cd "$ROOT"
source launch/python.sh
PYTHON=${WORKER_PYTHON:-}

wanted() { cat setup.py requirements*.txt | cksum; } # the content of the stamp of a finished set-up

setup() { # makes the virtual environment; the stamp is written last, so a partial set-up is redone
  local stamp=$BASE/ready python
  if [[ -f $stamp && $(<"$stamp") == "$(wanted)" ]]; then
    echo "worker $HOSTNAME ready"
    return
  fi
  rm -f "$stamp"
  python=$(newest_python) || {
    sudo apt-get -qq update && sudo apt-get -qq install -y python3.11 python3.11-venv >&2
    python=$(newest_python) || die "$HOSTNAME has no Python 3.11 or newer, and apt-get did not install one; choose another --runtime_version"
  }
  rm -rf "$BASE/venv"
  "$python" -m venv "$BASE/venv"
  "$BASE/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    -c "$(pins "$python")" -e '.[gcs]' 'jax[tpu]'
  wanted >"$stamp.tmp"
  mv "$stamp.tmp" "$stamp"
  echo "worker $HOSTNAME ready"
}

alive() { # succeeds while any process of the run holds the lock
  mkdir -p "$HERE"
  ! flock --nonblock "$HERE/lock" true
}

status() {
  local line
  line=$(cat "$HERE/state" 2>/dev/null) || line=idle
  if alive; then
    line=running
  elif [[ ! -f $BASE/ready ]]; then
    line=unready # not set up, or only in part
  elif [[ $line == running ]]; then
    line=lost # the host was rebooted, or all processes were killed
  fi
  echo "worker $HOSTNAME $line"
}

start() { # WORKDIR CONFIG OVERRIDES...
  local workdir=$1 config=$2
  shift 2
  [[ -f $BASE/ready ]] || die "$HOSTNAME is not set up, or only in part; run: tpu.sh setup" 75
  if alive; then
    echo "worker $HOSTNAME running already"
    return
  fi
  [[ ! -f $BASE/env ]] || load_secrets "$BASE/env"
  exec 9>"$HERE/lock" # every process started below inherits the lock; the last one to end frees it
  flock --wait 5 9 || die "another command is starting the run on $HOSTNAME; try again" 75
  echo running >"$HERE/state"
  mkdir -p "$BASE/cache"
  chmod 700 "$BASE/cache"
  # setsid: the run outlives this ssh connection, and `stop` can signal its whole process group.
  JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$BASE/cache} \
    setsid nohup bash launch/supervise.sh --workdir="$workdir" --state="$HERE/state" -- \
    "$BASE/venv/bin/python" -m gdistill.main --config="$config" --workdir="$workdir" "$@" \
    </dev/null >>"$HERE/log" 2>&1 &
  echo $! >"$HERE/pid"
  exec 9>&-
  echo "worker $HOSTNAME started"
}

stop() {
  local pid left=${STOP_SECONDS:-150}
  if alive; then
    pid=$(cat "$HERE/pid")
    # The supervisor passes SIGTERM on; if it was killed, its process group gets SIGTERM.
    kill -TERM "$pid" 2>/dev/null || kill -TERM -- "-$pid" 2>/dev/null || true
    while alive && ((left-- > 0)); do sleep 1; done
    ! alive || {
      say "the run on $HOSTNAME did not end within ${STOP_SECONDS:-150} seconds of SIGTERM: killed"
      kill -KILL -- "-$pid" 2>/dev/null || true
      sleep 1
    }
  fi
  status
}

if [[ $command == setup ]]; then
  setup
  exit
fi
RUN_ID=${1:-}
shift || true
check_run_id
HERE=$BASE/runs/$RUN_ID
case $command in
  run) start "$@" ;;
  status) status ;;
  logs) tail -n "$1" "$HERE/log" ;;
  stop) stop ;;
  *) die "worker.sh has no command '$command'" ;;
esac
