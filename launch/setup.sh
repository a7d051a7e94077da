# Sourced by local.sh and test.sh: makes an environment if there is none, and installs gdistill into it once.
#   setup EXTRAS     EXTRAS is '' or a list of extras of setup.py such as [test]
# VENV is the folder of the environment, .venv by default.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/python.sh
VENV=${VENV:-.venv}

setup() {
  local python stamp=$VENV/installed want pins
  python=$(newest_python) || {
    echo "${PYTHON:+PYTHON=$PYTHON: }gdistill needs Python 3.11 or newer, with its module venv; set PYTHON=/path/to/python3.13" >&2
    exit 2
  }
  [ -x "$VENV/bin/python" ] || "$python" -m venv "$VENV"
  if [ -n "${PYTHON:-}" ] && [ "$("$python" --version)" != "$("$VENV/bin/python" --version)" ]; then
    echo "PYTHON=$PYTHON is $("$python" --version), and $VENV has $("$VENV/bin/python" --version); remove $VENV, or set VENV to another folder" >&2
    exit 2
  fi
  pins=$(pins "$VENV/bin/python")
  want="$(cat setup.py "$pins" | cksum) $1"
  if ! grep -qxF "$want" "$stamp" 2>/dev/null; then
    echo "installing gdistill into $VENV ($("$VENV/bin/python" --version), $pins), which takes a minute or two" >&2
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check -c "$pins" -e ".$1"
    echo "$want" >>"$stamp"
  fi
}
