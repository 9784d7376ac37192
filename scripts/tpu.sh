#!/usr/bin/env bash
# A TPU slice from request to result: scripts/tpu.sh COMMAND --bucket=gs://BUCKET [OPTION...] [-- TRAINING OPTION...]
#   create    make the bucket, give the slice's account rights to it, and request the slice
#   install   wait for the slice, copy this folder's code to all its hosts and install it there
#   run       train, detached: create and install what is not there, also after a preemption, and continue.
#             After -- come options of scripts/train_tpu.sh: --config.name=value, --mode=eval
#   status, logs, delete    of the slice and of its run; the bucket stays
# Options, or the variables in brackets:
#   --type=v5litepod-8 [TPU_TYPE]   also v4-N, v5p-N, v6e-N       --bucket=gs://BUCKET [TPU_BUCKET]
#   --zone=ZONE [TPU_ZONE], --version=SOFTWARE [TPU_VERSION]      default: those of the type
#   --name=viavsp [TPU_NAME]        of the slice                  --run=final [TPU_RUN]   folder in the bucket
#   --account=EMAIL [TPU_ACCOUNT]   service account of the slice, default: Compute Engine's of the project
#   --spot [TPU_SPOT=1]             cheaper, may be taken away    --watch   run: stay, and run again after a preemption
#   --dry-run                       print the commands instead of running them
#   [TPU_INTERVAL=60]               seconds between two looks at the slice
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

fail() { echo "error: $1" >&2; exit 2; }

# Runs a command, or prints it as it could be pasted.
do_() {
  local word line=''
  [ -n "$dry" ] || { "$@"; return; }
  for word; do
    [[ $word =~ ^[A-Za-z0-9_.,:/=@-]+$ ]] || word=${word@Q}
    line+=" $word"
  done
  echo "${line# }" >&3
}

# What a type is: default zone and software, TensorCores in a unit of its number, dollars an hour for a chip. Sources:
# docs/tpu.md. For prices there is no stable list: they are of the year 2026, on demand, in the United States.
describe_type() {
  case "$type" in
    v4-*) set -- us-central2-b tpu-ubuntu2204-base 2 3.22 ;;
    v5litepod-*) set -- us-west1-c v2-alpha-tpuv5-lite 1 1.20 ;;
    v5p-*) set -- us-east5-a v2-alpha-tpuv5 2 4.20 ;;
    v6e-*) set -- us-east1-d v2-alpha-tpuv6e 1 2.70 ;;
    *) fail "--type is $type, expected v4-N, v5litepod-N, v5p-N or v6e-N" ;;
  esac
  [[ ${type##*-} =~ ^[1-9][0-9]*$ ]] || fail "--type is $type, expected a number after the last -"
  zone=${zone:-$1} version=${version:-$2} chips=$((${type##*-} / $3)) price=$4
  [ "$chips" -gt 0 ] || fail "--type is $type, which is less than a chip"
}

cost() {
  awk -v chips="$chips" -v price="$price" -v type="$type" 'BEGIN { printf "%s: %d chips, about $%.2f an hour on demand (%.2f a chip-hour; less with --spot) until it is deleted; see https://cloud.google.com/tpu/pricing\n", type, chips, chips * price, price }' >&2
}

# Of the request: ACTIVE, SUSPENDED, …; nothing where there is none, UNKNOWN where Google does not say.
state() {
  local answer
  if answer=$(do_ gcloud compute tpus queued-resources describe "$name" --zone "$zone" --format "value(state.state)" \
    2> "$scratch/said"); then
    echo "$answer"
  elif ! grep -q NOT_FOUND "$scratch/said"; then
    cat "$scratch/said" >&2
    echo UNKNOWN
  fi
}

# On one host or all.
ssh_() { do_ gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --quiet --worker "$1" --command "$2"; }

# Of the run: active, inactive, or nothing from a host that does not answer.
unit() { ssh_ 0 "systemctl is-active viavsp || true" || true; }

create() {
  local number role account=$account
  cost
  do_ gcloud services enable compute.googleapis.com tpu.googleapis.com storage.googleapis.com
  if [ -z "$account" ]; then
    project=${CLOUDSDK_CORE_PROJECT:-$(do_ gcloud config get-value project)}
    number=$(do_ gcloud projects describe "${project:-PROJECT}" --format "value(projectNumber)")
    account="${number:-NUMBER}-compute@developer.gserviceaccount.com"
  fi
  if [ -n "$dry" ] || ! gcloud storage buckets describe "$bucket" > /dev/null 2>&1; then
    do_ gcloud storage buckets create "$bucket" --location "${zone%-*}" --uniform-bucket-level-access
  fi
  # Objects; and the bucket itself, which Orbax looks up.
  for role in objectAdmin legacyBucketReader; do
    do_ gcloud storage buckets add-iam-policy-binding "$bucket" --member "serviceAccount:$account" \
      --role "roles/storage.$role"
  done
  do_ gcloud compute tpus queued-resources create "$name" --node-id "$name" --zone "$zone" \
    --accelerator-type "$type" --runtime-version "$version" --service-account "$account" ${spot:+--spot}
}

delete() { do_ gcloud compute tpus queued-resources delete "$name" --zone "$zone" --force --quiet; }

# Returns when the slice is there. What is not there, was taken away or never came is requested anew if $1 says so.
wait_for_slice() {
  local now before=none unknown=0
  while true; do
    now=$(state)
    if [ -n "$dry" ]; then
      [ "$1" != anew ] || create
      return
    fi
    [ "$now" = "$before" ] || echo "$name: ${now:-not there}" >&2
    before=$now
    case "$now" in
      ACTIVE) return ;;
      UNKNOWN) [ $((unknown += 1)) -lt 5 ] || fail "the state of $name is not known" ;;
      "" | SUSPENDED | FAILED)
        [ "$1" = anew ] || fail "$name is ${now:-not there}, expected one that is ACTIVE: scripts/tpu.sh run makes it"
        [ -z "$now" ] || delete || true
        create || [ $((unknown += 1)) -lt 5 ] || fail "$name could not be requested" ;;
    esac
    sleep "$interval"
  done
}

install() {
  local archive="$scratch/viavsp_jax.tgz"
  [ -z "$dry" ] || archive=viavsp_jax.tgz
  do_ tar -czf "$archive" -C "$root" --exclude __pycache__ \
    viavsp_jax convert configs scripts setup.py pyproject.toml constraints.txt README.md
  do_ gcloud compute tpus tpu-vm scp "$archive" "$name:" --zone "$zone" --quiet --worker all
  ssh_ all "mkdir -p viavsp_jax && tar -xzf viavsp_jax.tgz -C viavsp_jax && cd viavsp_jax &&\
 bash -c '. scripts/install.sh && install_extra tpu'"
}

# A unit of systemd outlives the connection, gets SIGTERM before the machine goes, and there is only one of a name.
start() {
  local words
  words=$(printf ' %q' "$bucket/llm" "$bucket/shards" "$bucket/$run" "$@")
  ssh_ all "sudo systemd-run --quiet --unit=viavsp --collect --uid=\$(id -u) -p KillMode=mixed -p TimeoutStopSec=90\
 -p LimitMEMLOCK=infinity -p LimitNOFILE=1048576 \$HOME/viavsp_jax/scripts/train_tpu.sh$words"
}

run() {
  local over
  while true; do
    wait_for_slice anew
    if [ "$(unit)" = active ]; then
      echo "a run is under way on $name, which goes on" >&2
    else
      install
      start "$@"
    fi
    if [ -z "$watch" ] || [ -n "$dry" ]; then return; fi
    # It is over when it is so twice: a machine that is taken away stops it first.
    over=0
    while sleep "$interval" && [[ $(state) =~ ^(ACTIVE|UNKNOWN)$ ]]; do
      [ "$(unit)" = inactive ] && over=$((over + 1)) || over=0
      if [ $over = 2 ]; then
        ssh_ 0 "journalctl --unit=viavsp --output=cat --lines=3"
        return
      fi
    done
  done
}

command=${1:-} dry='' watch='' interval=${TPU_INTERVAL:-60} spot=${TPU_SPOT:-} type=${TPU_TYPE:-v5litepod-8} zone=${TPU_ZONE:-} name=${TPU_NAME:-viavsp}
version=${TPU_VERSION:-} bucket=${TPU_BUCKET:-} run=${TPU_RUN:-final} account=${TPU_ACCOUNT:-}
case "$command" in
  create | install | run | status | logs | delete) shift ;;
  -h | --help) sed -n '2,/^set/{/^#/s/^# \?//p}' "${BASH_SOURCE[0]}"; exit ;;
  *) fail "expected create, install, run, status, logs or delete, not '$command' (--help shows them)" ;;
esac
while [ $# -gt 0 ]; do
  case "$1" in
    --dry-run) dry=1 ;;
    --spot) spot=1 ;;
    --watch) watch=1 ;;
    --type=?* | --zone=?* | --name=?* | --version=?* | --bucket=?* | --run=?* | --account=?*)
      option=${1%%=*}
      printf -v "${option#--}" %s "${1#*=}" ;;
    --) shift; break ;;
    *) fail "unknown option $1 (--help shows them; training options come after --)" ;;
  esac
  shift
done
[ $# = 0 ] || [ "$command" = run ] || fail "$command takes no options after --"
[ "$spot" != 0 ] || spot=''
describe_type
case "$command" in
  create | run)
    [[ $bucket =~ ^gs://[a-z0-9][a-z0-9._-]+$ ]] || fail "--bucket is '$bucket', expected gs:// and the name of a bucket" ;;
esac
[ -n "$dry" ] || command -v gcloud > /dev/null || fail "gcloud is not installed: https://cloud.google.com/sdk/docs/install"
exec 3>&1
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

case "$command" in
  create) create ;;
  install) wait_for_slice '' && install ;;
  run) run "$@" ;;
  delete) delete ;;
  status)
    now=$(state)
    [ "$now" != UNKNOWN ] || fail "the state of $name is not known"
    [ -n "$dry" ] || echo "$name: ${now:-not there}"
    if [ -n "$dry" ] || [ "$now" = ACTIVE ]; then ssh_ all "hostname; systemctl is-active viavsp || true"; fi ;;
  logs) ssh_ 0 "journalctl --unit=viavsp --output=cat --lines=200 --follow" ;;
esac
