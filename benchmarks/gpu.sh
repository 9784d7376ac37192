#!/usr/bin/env bash
# All that a GPU should show, in one run of at most nine minutes:
#   benchmarks/gpu.sh [--wheels DIR] [OUTPUT] [--tiny] [--seconds 540] [--only PART...]
# benchmarks/gpu.py says what the parts are and what stands in OUTPUT ($OUT or runs/gpu by default). --wheels: packages
# that this Python lacks, for a machine without internet; benchmarks/gpu_wheels.txt lists them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ "${1:-}" = --wheels ]; then
  site=$(mktemp -d)
  python3 -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$2"/*.whl
  export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
  shift 2
fi
exec python3 -m benchmarks.gpu "$@"
