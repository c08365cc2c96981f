#!/usr/bin/env bash
# Run the project on every host of a Cloud TPU slice. TPU_NAME and ZONE name it.
#
#   launch/tpu_vm.sh setup                             copy this commit to all hosts and install it
#   launch/tpu_vm.sh start PROJECT.train CONFIG.py ... start on all hosts, again after a failure
#   launch/tpu_vm.sh logs                              follow the log of the first host
#   launch/tpu_vm.sh stop                              SIGTERM: the run saves and ends
set -euo pipefail
: "${TPU_NAME:?the name of the TPU}" "${ZONE:?its zone}"

on() { # on WORKER COMMAND
  gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="$ZONE" --worker="$1" --command="$2"
}

action=${1:-}
case $action in
  setup)
    archive=$(mktemp --suffix=.tar.gz)
    trap 'rm -f "$archive"' EXIT
    git archive --format=tar.gz --output="$archive" HEAD
    gcloud compute tpus tpu-vm scp "$archive" "$TPU_NAME:code.tar.gz" --zone="$ZONE" --worker=all
    on all 'mkdir -p code && cd code && tar xzf ../code.tar.gz && python3 -m venv .venv &&
      .venv/bin/python -m pip install -q -c constraints.txt -e ".[tpu,gcs]"'
    ;;
  start)
    shift
    printf -v command '%q ' "$@"
    on all "cd code && { nohup .venv/bin/python -m common.supervise -- .venv/bin/python -m $command \
      >> train.log 2>&1 < /dev/null & echo \$! > train.pid; }"
    ;;
  logs) on 0 'tail -F code/train.log' ;;
  stop) on all "kill -TERM \$(cat code/train.pid)" ;;
  *)
    sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
