#!/usr/bin/env bash
# ViCocktail from the Hub to word error rates: scripts/vicocktail.sh STEP FOLDER [--config.name=value ...]
#   download   the corpus, an AV-HuBERT encoder and VinaLLaMA-2.7B, into FOLDER
#   prepare    shards of media in FOLDER/shards; wants a GPU for the first hour of the clips, CPU cores for the rest
#   train      on the devices there are; WORKDIR, LLM, SHARDS and ENCODER in the environment replace folders in FOLDER
#   evaluate   the nine test sets, and what becomes of them without sound or video
# A stopped step continues when called again. docs/vicocktail.md tells what they take.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
[ $# -ge 2 ] || { sed -n 2,8p "${BASH_SOURCE[0]}" >&2; exit 2; }
step=$1 folder=$(realpath -m "$2")
shift 2
llm=${LLM:-$folder/llm} shards=${SHARDS:-$folder/shards} encoder=${ENCODER:-$folder/avhubert}
. "$root/scripts/install.sh"
cd "$root"

# Trains or evaluates.
run() {
  install_extra "${EXTRA:-tpu}"
  exec python -m viavsp_jax.main --config=configs/vicocktail.py --workdir="${WORKDIR:-$folder/run}" --mode="$1" \
    --config.llm.path="$llm" --config.data.path="$shards" --config.encoder.path="$encoder" "${@:2}"
}

case $step in
  download)
    install_extra prepare
    hf download nguyenvulebinh/ViCocktail --repo-type dataset --include 'data/*.tar' --local-dir "$folder/corpus"
    hf download nguyenvulebinh/avhubert_encoder_large_noise_pt_noise_ft_433h --local-dir "$folder/avhubert_hf"
    hf download vilm/vinallama-2.7b --local-dir "$folder/vinallama"
    ;;
  prepare)
    install_extra prepare
    [ -e "$folder/avhubert/config.json" ] ||
      python -m convert.from_avhubert "$folder/avhubert_hf" --output "$folder/avhubert" --waveform int16
    [ -e "$folder/llm/conversion.json" ] ||
      python -m convert.from_hf "$folder/vinallama" --output "$folder/llm" --dtype bfloat16
    python -m viavsp_jax.prepare manifest --data "$folder/corpus" --output "$folder/manifest" --valid 0.03
    [ -e "$folder/kmeans.safetensors" ] ||
      python -m viavsp_jax.prepare kmeans --manifest "$folder/manifest" --encoder "$folder/avhubert" \
        --output "$folder/kmeans.safetensors" --layer 2 --num_clusters 20
    exec python -m viavsp_jax.prepare shards --manifest "$folder/manifest" --encoder "$folder/avhubert" \
      --kmeans "$folder/kmeans.safetensors" --output "$folder/shards" --kind media
    ;;
  train) run train "$@" ;;
  evaluate) run eval "$@" ;;
  *) sed -n 2,8p "${BASH_SOURCE[0]}" >&2; exit 2 ;;
esac
