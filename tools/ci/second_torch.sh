# The wheel that was built against the first torch, unchanged, on another release whose torchvision and timm are missing.
# shellcheck shell=bash

SECOND_TORCH=2.13.0
MINIMUM_TESTS=900

stage_second_torch() {
  [[ -f $FIRST_RESULTS ]] || fail "the stage second_torch needs the stage install before it"
  local venv=$WORK/venv_second results=$WORK/second.xml
  new_venv "$venv"
  "$venv/bin/pip" install -q "torch==$SECOND_TORCH" rich pytest pytest-xdist hypothesis numpy pillow scikit-learn
  "$venv/bin/pip" install -q --no-deps "$WHEELS"/*.whl
  count_tests "$venv/bin/pytest" -q -n 2 --dist worksteal --junitxml="$results"
  "$venv/bin/python" tools/ci/compare_runs.py "$FIRST_RESULTS" "$results" --minimum "$MINIMUM_TESTS"
}
