# Sourced: which Python the environments are made from, and which exact package versions go into them.

# Prints $PYTHON if set, else the newest supported Python that is found; fails if there is none.
newest_python() {
  local version
  if [ -n "${PYTHON:-}" ]; then
    is_python "$PYTHON" && echo "$PYTHON"
    return
  fi
  for version in 3.13 3.12 3.11; do
    ! find_python "$version" || return 0
  done
  is_python python3 && echo python3
}

# Prints a Python of version $1, such as 3.13; fails if there is none. The versions of pyenv count
# as found also where pyenv has not selected them.
find_python() {
  local candidate
  for candidate in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/python; do
    if is_python "$candidate" "$1"; then
      echo "$candidate"
      return
    fi
  done
  return 1
}

# Succeeds if the command $1 is a Python 3.11 or newer, and of version $2 if given, that can make
# virtual environments.
is_python() {
  "$1" -c 'import ensurepip, sys
version = "%d.%d" % sys.version_info[:2]
sys.exit(sys.version_info < (3, 11) or version != (sys.argv[1:] or [version])[0])' "${@:2}" >/dev/null 2>&1
}

# Prints the name of the file of exact versions for the Python $1.
pins() {
  "$1" -c 'import sys; print("requirements.txt" if sys.version_info < (3, 12) else "requirements-latest.txt")'
}
