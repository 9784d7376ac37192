#!/usr/bin/env bash
# Exports the best checkpoint to Hugging Face format: scripts/export_hf.sh WORKDIR OUTPUT [--merge]
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
[ $# -ge 2 ] || { sed -n 2p "${BASH_SOURCE[0]}" >&2; exit 2; }
workdir=$1 output=$2
shift 2
. "$root/scripts/install.sh"
install_extra prepare
cd "$root"
exec python -m convert.to_hf --workdir "$workdir" --output "$output" "$@"
