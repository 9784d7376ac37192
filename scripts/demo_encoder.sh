#!/usr/bin/env bash
# The demo with a frozen and with a trained encoder, three seeds each: scripts/demo_encoder.sh [--seeds 0 1 2]
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$root/scripts/install.sh"
install_extra demo
cd "$root"
exec python -m scripts.demo_encoder --shared runs/demo --workdir runs/demo_encoder "$@"
