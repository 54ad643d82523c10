# The core, csrc/ops and the C++ tests cross-built for aarch64; the tests run under qemu on a new and on an old core.
# shellcheck shell=bash

stage_aarch64() {
  local directory=$WORK/aarch64 cpu running=() failed=0
  local options=(-DCMAKE_TOOLCHAIN_FILE=cmake/toolchain-aarch64.cmake -DMOBILENET_EXT_EMULATE_CUDA=OFF)
  if [[ -x $VENV/bin/pytest ]]; then # csrc/ops needs torch's headers, which are the same for every processor
    options+=(-DMOBILENET_EXT_TORCH_DIR="$("$VENV/bin/python" -c 'import torch; print(torch.__path__[0])')")
  else
    echo "csrc/ops is left out: it needs the environment of the stage install"
  fi
  core_build "$directory" "${options[@]}"
  # Side by side: the longest test of each takes most of its time.
  for cpu in max cortex-a72; do
    QEMU_CPU=$cpu ctest --test-dir "$directory" --output-on-failure >"$WORK/aarch64-$cpu.log" 2>&1 &
    running+=($!)
  done
  for cpu in max cortex-a72; do
    wait "${running[0]}" || failed=1
    running=("${running[@]:1}")
    printf '\nqemu, -cpu %s\n' "$cpu"
    count_tests cat "$WORK/aarch64-$cpu.log"
  done
  [[ $failed == 0 ]] || fail "a test failed under qemu"
}
