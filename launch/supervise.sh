#!/usr/bin/env bash
# Runs one command under the restart policy, on any machine.
#   bash launch/supervise.sh --workdir=DIR [--state=FILE] [--dry-run] -- COMMAND...
# Exit code 0 of the command means done. Codes 2 to 5 end the loop with a message. Codes 42, 134 and
# kills restart the command, at most MAX_RESTARTS (10) times in a row without progress; other codes
# restart it at most MAX_CRASHES (3) times. SIGTERM is passed on to the command and ends the loop.
# FILE holds one line: `running`, or `exited CODE WHY TIME`.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
flags=()
while (($#)) && [[ $1 != -- ]]; do
  flags+=("$1")
  shift
done
parse 'workdir state' ${flags[@]+"${flags[@]}"}
shift || die 'the command is missing; give it after --'
(($#)) || die 'the command is missing; give it after --'
need WORKDIR
[[ $WORKDIR == *://* || $WORKDIR == /* ]] || WORKDIR=$PWD/$WORKDIR
PROGRAM=${GDISTILL_PYTHON:-$1}

note() { # LINE: replaces the state file by LINE, with an atomic rename
  [[ ${STATE:-} ]] || return 0
  printf '%s\n' "$*" >"$STATE.tmp" && mv "$STATE.tmp" "$STATE"
}

if [[ $DRY_RUN ]]; then
  show "$@"
  exit 0
fi
trap 'forward SIGTERM' TERM
trap 'forward SIGINT' INT
trap 'forward SIGHUP' HUP
note running
code=0
keep_running "$WORKDIR" child "$@" || code=$?
note "exited $code $WHY $(date +%s)"
exit "$code"
