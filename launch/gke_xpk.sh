#!/usr/bin/env bash
# Run the project on TPU slices of a GKE cluster that xpk made, as a JobSet.
#
#   CLUSTER=... ZONE=... IMAGE=... TPU_TYPE=v5litepod-256 SLICES=2 \
#     launch/gke_xpk.sh NAME PROJECT.train CONFIG.py --workdir gs://BUCKET/NAME ...
#
# The JobSet starts all pods anew when one fails or is evicted, and the run resumes. What is not in a
# bucket is lost with the pods: give a --workdir there.
set -euo pipefail
: "${CLUSTER:?the cluster}" "${ZONE:?its zone}" "${IMAGE:?the image that launch/Dockerfile makes}"
: "${TPU_TYPE:?the type of a slice, as v5litepod-256}"

if (($# < 3)); then
  sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
name=$1
shift
printf -v command '%q ' python -m "$@"

xpk workload create \
  --cluster="$CLUSTER" --zone="$ZONE" --workload="$name" \
  --tpu-type="$TPU_TYPE" --num-slices="${SLICES:-1}" \
  --docker-image="$IMAGE" --max-restarts="${MAX_RESTARTS:-100}" \
  --command="$command"
