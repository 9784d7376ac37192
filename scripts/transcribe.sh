#!/usr/bin/env bash
# Transcribes videos of a speaking face: scripts/transcribe.sh FILE... --model WORKDIR_OR_EXPORT [--format srt vtt txt json]
# Installs what that needs; `python -m viavsp_jax.transcribe --help` lists all options.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
[ $# -ge 1 ] || { sed -n 2,3p "${BASH_SOURCE[0]}" >&2; exit 2; }
. "$root/scripts/install.sh"
install_extra app
PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" exec python -m viavsp_jax.transcribe "$@"
