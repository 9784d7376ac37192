#!/usr/bin/env bash
# The whole system on synthesized speech, from nothing to word error rates: scripts/demo.sh [WORKDIR]
# WORKDIR defaults to runs/demo in the project's root. A stopped run continues when called again.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
workdir=$(realpath -m "${1:-$root/runs/demo}")
started=$SECONDS
. "$root/scripts/install.sh"
install_extra demo
installed=$((SECONDS - started))
cd "$root"
exec python -m scripts.demo --workdir "$workdir" --install_seconds "$installed"
