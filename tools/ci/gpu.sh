# What can be proven of the GPU kernels without a GPU, beyond what pytest and the stage core run: every Triton kernel
# compiled in every dtype for every target, every CUDA kernel for every architecture, no spills, the occupancy that the
# docstrings and docs/gpu.md state, and the tables of docs/gpu.md.
# shellcheck shell=bash

NVCC_WHEELS=(nvidia-cuda-nvcc nvidia-cuda-crt nvidia-nvvm nvidia-cuda-runtime nvidia-cuda-cccl)

stage_gpu() {
  [[ -x $VENV/bin/pytest ]] || fail "the stage gpu needs the stage install before it"
  local nvcc pids=() arch pid failed=0
  nvcc=$(find_nvcc)
  echo "nvcc: $nvcc"
  for arch in 80 90 100; do # beside the Triton kernels: each is one process
    "$nvcc" -std=c++17 -O3 -cubin "-arch=sm_$arch" -Xptxas -v -Icsrc -o "$WORK/kernels_$arch.cubin" \
      csrc/cuda/kernels.cu >"$WORK/kernels_sm_$arch.log" 2>&1 &
    pids+=($!)
  done
  (cd "$WORK" && "$VENV/bin/python" -m mobilenet_ext.backends.triton.aot --json "$WORK/triton.jsonl") || failed=1
  for pid in "${pids[@]}"; do
    wait "$pid" || failed=1
  done
  local tests=$WORK/core-g++/csrc/tests
  [[ -x $tests/cuda_traffic && -x $tests/test_cuda ]] || core_build "$WORK/core-g++" -DCMAKE_CXX_COMPILER=g++
  "$tests/test_cuda" kernels >"$WORK/kernels.txt"
  python3 csrc/tests/cuda_resources.py "$WORK"/kernels_sm_{80,90,100}.log --kernels "$WORK/kernels.txt" || failed=1
  "$tests/cuda_traffic" >"$WORK/traffic.jsonl" || failed=1
  python3 tools/ci/gpu_table.py "$WORK/traffic.jsonl" "$WORK"/kernels_sm_{80,90,100}.log \
    --triton "$WORK/triton.jsonl" --check docs/gpu.md || failed=1
  [[ $failed == 0 ]] || fail "see above"
}

# The nvcc of a toolkit that is here, else the one that the wheels bring.
find_nvcc() {
  local found
  found=$(toolkit_nvcc)
  if [[ -z $found ]]; then
    "$VENV/bin/pip" install -q "${NVCC_WHEELS[@]/%/==13.0.*}" >&2
    found=$(echo "$VENV"/lib/python3.*/site-packages/nvidia/cu13/bin/nvcc)
    [[ -x $found ]] || fail "no nvcc: the CUDA kernels cannot be compiled"
  fi
  echo "$found"
}
