#!/usr/bin/env bash
# Start a command again until it ends well: after a preemption, a crash, or the loss of another host.
#
#   launch/keep_running.sh .venv/bin/python -m PROJECT.train CONFIG.py
#
# SIGTERM is passed on, so that the run saves, and the command is not started again. Three starts in a
# row that each fail within a minute are a mistake and not bad luck: the last status is handed on.
set -uo pipefail

child=
stopped=
trap 'stopped=1; kill -TERM "$child" 2>/dev/null' TERM INT

short=0
while true; do
  began=$SECONDS
  "$@" &
  child=$!
  wait "$child"
  status=$?
  while kill -0 "$child" 2>/dev/null; do # a signal ends the wait, not the command
    wait "$child"
    status=$?
  done
  if [[ $status -eq 0 || -n $stopped ]]; then
    exit "$status"
  fi
  if ((SECONDS - began < 60)); then short=$((short + 1)); else short=0; fi
  if ((short == 3)); then
    echo "ended with status $status three times within a minute; not started again" >&2
    exit "$status"
  fi
  echo "ended with status $status; started again in ${RESTART_SECONDS:-10} s" >&2
  sleep "${RESTART_SECONDS:-10}"
done
