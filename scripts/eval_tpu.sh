#!/usr/bin/env bash
# WER and CER of the best checkpoint: scripts/eval_tpu.sh LLM SHARDS WORKDIR [--config.name=value ...]
# Takes what scripts/train_tpu.sh takes; writes report.html, report.json and evaluations/ to WORKDIR.
set -euo pipefail
[ $# -ge 3 ] || { sed -n 2,3p "${BASH_SOURCE[0]}" >&2; exit 2; }
exec "$(dirname "${BASH_SOURCE[0]}")/train_tpu.sh" "$@" --mode=eval
