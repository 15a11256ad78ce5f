#!/bin/sh
# Trains what is put into a folder: sh run-jobs.sh FOLDER [--once]
#
#   FOLDER/new/<tenant>/<adapter>/job.yaml   with its data beside it. Make it elsewhere on the same disk and move it here:
#                                            what is here is taken at once
#   FOLDER/running/<tenant>/<adapter>/       the one that is trained; after a stop it goes on where it was
#   FOLDER/done/…, FOLDER/failed/…           what came of it: the job, log.txt, and result.json
#
# A version is published as <tenant>/<adapter> and not promoted: that is for a person, or for who reads result.json.
set -eu
cd "$1"
once=${2:-}
child=
trap 'if [ -n "$child" ]; then kill -TERM "$child"; wait "$child"; fi; exit 143' TERM INT
mkdir -p new running done failed

train() {
  name=$1
  echo "==> $name: training" >&2
  # In the background, and waited for: so that a stop reaches this shell, which passes it on.
  lorikeet train run "running/$name/job.yaml" --publish "$name" --reuse --json \
    >"running/$name/result.json" 2>"running/$name/log.txt" &
  child=$!
  if wait "$child"; then result=done; else result=failed; fi
  child=
  mkdir -p "$result/${name%/*}"
  mv "running/$name" "$result/$name-$(date -u +%Y%m%dT%H%M%S.%NZ)"
  echo "==> $name: $result" >&2
}

# The first job in a folder, as <tenant>/<adapter>: nothing if there is none.
first() {
  for job in "$1"/*/*/job.yaml; do
    [ -f "$job" ] || continue
    job=${job#"$1"/}
    echo "${job%/job.yaml}"
    return
  done
}

while :; do
  name=$(first running)
  if [ -z "$name" ]; then
    name=$(first new)
    if [ -n "$name" ]; then
      mkdir -p "running/${name%/*}"
      mv "new/$name" "running/$name"
    fi
  fi
  if [ -n "$name" ]; then
    train "$name"
  elif [ "$once" = --once ]; then
    exit 0
  else
    sleep 5 &
    wait $!
  fi
done
