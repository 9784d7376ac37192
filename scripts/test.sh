#!/usr/bin/env bash
# Lints and tests the project: scripts/test.sh [TIER] [pytest arguments]; TIER is a folder of tests/, e.g. unit.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$root/scripts/install.sh"
install_extra test
cd "$root"
ruff check .
ruff format --check .
lint-imports --no-logo
if [[ $# -gt 0 && -d "tests/$1" ]]; then
  set -- "tests/$1" "${@:2}"
fi
# A file at a time, since its tests share what they set up.
exec python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder "$@"
