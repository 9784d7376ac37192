#!/usr/bin/env bash
# Trains on a TPU VM: scripts/train_tpu.sh LLM SHARDS WORKDIR [--config.name=value ...]
# LLM is a folder of convert.from_hf; all three may be gs:// paths. A stopped run continues when called again.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
[ $# -ge 3 ] || { sed -n 2,3p "${BASH_SOURCE[0]}" >&2; exit 2; }
llm=$1 shards=$2 workdir=$3
shift 3
. "$root/scripts/install.sh"
install_extra tpu
cd "$root"
exec python -m viavsp_jax.main --config=configs/final.py --workdir="$workdir" --mode=train \
  --config.llm.path="$llm" --config.data.path="$shards" "$@"
