# Sourced by the other scripts: gives the checkout a virtual environment of its own, made anew when pyproject.toml changes.
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
stamp=.venv/.stager-$(cksum < pyproject.toml | tr ' ' -)
if [ ! -e "$stamp" ]; then
  python=$(command -v python3.13 || command -v python3.12 || command -v python3.11 || command -v python3)
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed" >&2; exit 1; }
  echo "setting up .venv" >&2
  "$python" -m venv --clear .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
  touch "$stamp"
fi
PATH=$PWD/.venv/bin:$PATH
export PATH
