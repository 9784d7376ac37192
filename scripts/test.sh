#!/usr/bin/env bash
# Lints and tests the project: scripts/test.sh [pytest arguments]
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$root/scripts/install.sh"
install_extra test
cd "$root"
ruff check .
ruff format --check .
exec python -m pytest "$@"
