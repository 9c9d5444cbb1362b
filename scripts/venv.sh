# Sourced by the other scripts: gives the checkout a virtual environment of its own, made anew when pyproject.toml changes.
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
stamp=.venv/.stager-$(cksum < pyproject.toml | tr ' ' -)
if [ ! -e "$stamp" ]; then
  for python in python3.13 python3.12 python3.11 python3 ""; do
    # A name on PATH is not yet an interpreter: version managers put shims there that only fail.
    [ -n "$python" ] || { echo "error: Python 3.11 or newer is needed" >&2; exit 1; }
    "$python" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break
  done
  echo "setting up .venv" >&2
  "$python" -m venv --clear .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
  touch "$stamp"
fi
PATH=$PWD/.venv/bin:$PATH
export PATH
