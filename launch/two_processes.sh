#!/usr/bin/env bash
# Trains one run with two processes on this machine, as two hosts would.
#   bash launch/two_processes.sh --run_id=ID --config=FILE [--workdir_root=runs] [--config.key=value ...] [--dry-run]
# Process 0 is the coordinator, on a free port of 127.0.0.1. When one process ends with an error,
# the other one is killed after PEER_SECONDS (60) unless it ends by itself. The exit code of the
# process that ended first decides whether both start again. SIGTERM is passed on to both, and the
# script waits until both have ended. Their output is in WORKDIR_ROOT/.logs/RUN_ID/.
# shellcheck disable=SC2329 # keep_running of common.sh calls the functions defined here
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 501)) || die "bash $BASH_VERSION is too old; 5.1 or newer is needed"
parse 'run_id config workdir_root processes' "$@"
: "${WORKDIR_ROOT:=runs}" "${PEER_SECONDS:=60}" "${PROCESSES:=2}"
check_run_id
check_positive PROCESSES
[[ $WORKDIR_ROOT != *://* ]] || die "--workdir_root='$WORKDIR_ROOT' must be a local folder, because the logs are written there too"
cd "$ROOT"
python_of_project
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
check_plan "$((PROCESSES * $(cpu_devices_of_config)))" 1
workdir=$WORKDIR_ROOT/$RUN_ID logs=$WORKDIR_ROOT/.logs/$RUN_ID

process() { # INDEX PORT -> COMMAND
  COMMAND=("$PROGRAM" -m gdistill.main --config="$CONFIG" --workdir="$workdir"
    --coordinator="127.0.0.1:$2" --num_processes="$PROCESSES" --process_id="$1"
    ${OVERRIDES[@]+"${OVERRIDES[@]}"})
}

if [[ $DRY_RUN ]]; then
  for ((i = 0; i < PROCESSES; i++)); do
    process "$i" PORT
    show JAX_PLATFORMS="$JAX_PLATFORMS" JAX_COORDINATOR_BIND_ADDRESS=127.0.0.1:PORT "${COMMAND[@]}"
  done
  exit 0
fi

free_port() { "$PROGRAM" -c "import socket; s = socket.socket(); s.bind(('127.0.0.1', 0)); print(s.getsockname()[1])"; }

pass_on() { ((${#left[@]} == 0)) || kill -TERM "${left[@]}" 2>/dev/null || true; }

reap() { # PID...: kills these processes after PEER_SECONDS; SIGTERM to reap cancels that
  local pid
  sleep "$PEER_SECONDS" &
  pid=$!
  trap 'kill "$pid"; exit' TERM
  wait "$pid" && kill -KILL "$@" 2>/dev/null
}

attempt() { # starts the processes and waits for all; returns the first exit code that is not 0
  local port i who code first=0 reaper=''
  port=$(free_port)
  left=()
  for ((i = 0; i < PROCESSES; i++)); do
    process "$i" "$port"
    # Without a bind address the coordinator would listen on every address of the machine.
    JAX_COORDINATOR_BIND_ADDRESS=127.0.0.1:$port "${COMMAND[@]}" >>"$logs/process$i.log" 2>&1 &
    left+=("$!")
    say "process $i is pid $!, its output is in $logs/process$i.log"
  done
  [[ -z $SIGNALLED ]] || pass_on
  while ((${#left[@]})); do
    who='' code=0
    wait -n -p who "${left[@]}" 2>/dev/null || code=$?
    if [[ -z ${who:-} ]]; then
      ((code == 127)) || continue # a signal interrupted `wait`; the trap has passed it on
      # `wait -n` does not report a process that ended before the call; plain `wait` does.
      for i in "${left[@]}"; do
        kill -0 "$i" 2>/dev/null || who=$i
      done
      [[ $who ]] || { sleep 0.1; continue; }
      code=0
      wait "$who" || code=$?
    fi
    for i in "${!left[@]}"; do
      [[ ${left[i]} != "$who" ]] || unset "left[$i]"
    done
    ((code == 0)) || say "pid $who left with exit code $code"
    if ((first == 0)); then
      first=$code
    elif [[ $(verdict "$first") == crash && $(verdict "$code") == restart ]]; then
      first=$code # the kill of this process caused the traceback that was reported first
    elif [[ $first == 134 && $code == [235] ]]; then
      first=$code # this error caused the peer's 134; not so for 4, which a lost peer may cause
    fi
    if ((code && ${#left[@]})) && [[ -z $reaper ]]; then
      reap "${left[@]}" &
      reaper=$!
    fi
  done
  [[ -z $reaper ]] || kill "$reaper" 2>/dev/null || true
  return "$first"
}

mkdir -p "$logs"
left=()
trap 'forward SIGTERM' TERM
trap 'forward SIGINT' INT
trap 'forward SIGHUP' HUP
code=0
keep_running "$workdir" attempt || code=$?
((code == 0)) || tail -n 3 "$logs"/process*.log >&2
exit "$code"
