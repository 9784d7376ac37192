#!/usr/bin/env bash
# VASR to shards: scripts/prepare_vasr.sh VASR_FOLDER AVHUBERT_CHECKPOINT.pt OUTPUT [NUM_SHARDS SHARD_INDEX]
# Wants a CUDA GPU for the full set. A stopped run continues. With NUM_SHARDS and SHARD_INDEX, several machines that
# share OUTPUT divide the last step among them: let the first get past the K-Means before the others start.
# KIND=both writes shards of media too, for training the encoder.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
[ $# -ge 3 ] || { sed -n 2,5p "${BASH_SOURCE[0]}" >&2; exit 2; }
data=$(realpath "$1") checkpoint=$(realpath "$2") output=$(realpath -m "$3")
. "$root/scripts/install.sh"
install_extra prepare
cd "$root"
[ -e "$output/avhubert/config.json" ] ||
  python -m convert.from_fairseq "$checkpoint" --output "$output/avhubert"
[ -e "$output/manifest/train.tsv" ] ||
  python -m viavsp_jax.prepare manifest --data "$data" --output "$output/manifest"
[ -e "$output/kmeans.safetensors" ] ||
  python -m viavsp_jax.prepare kmeans --manifest "$output/manifest" --encoder "$output/avhubert" \
    --output "$output/kmeans.safetensors" --layer 12 --num_clusters 1000 --fraction 0.01
python -m viavsp_jax.prepare shards --manifest "$output/manifest" --encoder "$output/avhubert" \
  --kmeans "$output/kmeans.safetensors" --output "$output/shards" --modalities av --kind "${KIND:-features}" \
  ${4:+--num_shards "$4"} ${5:+--shard_index "$5"}
