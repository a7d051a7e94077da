# Sourced by local.sh and test.sh: makes .venv if there is none, and installs gdistill into it once.
#   setup EXTRAS     EXTRAS is '' or a list of extras of setup.py such as [test]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-python3}

setup() {
  "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "gdistill needs Python 3.11 or newer; set PYTHON=/path/to/python3.11" >&2
    exit 2
  }
  [ -x .venv/bin/python ] || "$PYTHON" -m venv .venv
  local stamp=.venv/installed want
  want="$(cat setup.py requirements.txt | cksum) $1"
  if ! grep -qxF "$want" "$stamp" 2>/dev/null; then
    echo 'installing gdistill into .venv, which takes a minute or two' >&2
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -c requirements.txt -e ".$1"
    echo "$want" >>"$stamp"
  fi
}
