# The README's own test command in a new environment without torch, so that torch comes as a dependency; then a wheel
# in that environment, where torch is already there and must not be downloaded again.
# shellcheck shell=bash

TEST_COMMAND="pip install '.[test]' && pytest"

stage_install() {
  grep -qF "$TEST_COMMAND" README.md || fail "README.md no longer has this test command: $TEST_COMMAND"
  new_venv "$VENV"
  # One architecture is enough to see that the CUDA part builds and loads; the stage gpu compiles for all of them.
  export TORCH_CUDA_ARCH_LIST=9.0
  PATH=$VENV/bin:$PATH PYTEST_ADDOPTS="--junitxml=$FIRST_RESULTS" count_tests bash -c "$TEST_COMMAND"
  build_wheel
}

build_wheel() {
  local log=$WORK/wheel.log
  "$VENV/bin/pip" wheel -v --no-deps --wheel-dir "$WHEELS" . >"$log" 2>&1 || { tail -n 40 "$log"; return 1; }
  grep -E '^ *(mobilenet_ext: |CPU part|CUDA part)' "$log"
  if grep -E '^ *(Collecting|Downloading|Processing|Using cached) .*torch[-= >]' "$log"; then
    fail "building with torch installed fetched another torch"
  fi
}
