# The core, csrc/ops and the C++ tests cross-built for aarch64; the tests run under qemu on a new and on an old core.
# shellcheck shell=bash

stage_aarch64() {
  local directory=$WORK/aarch64 cpu
  local options=(-DCMAKE_TOOLCHAIN_FILE=cmake/toolchain-aarch64.cmake -DMOBILENET_EXT_EMULATE_CUDA=OFF)
  if [[ -x $VENV/bin/pytest ]]; then # csrc/ops needs torch's headers, which are the same for every processor
    options+=(-DMOBILENET_EXT_TORCH_DIR="$("$VENV/bin/python" -c 'import torch; print(torch.__path__[0])')")
  else
    echo "csrc/ops is left out: it needs the environment of the stage install"
  fi
  core_build "$directory" "${options[@]}"
  for cpu in max cortex-a72; do
    printf '\nqemu, -cpu %s\n' "$cpu"
    QEMU_CPU=$cpu count_tests ctest --test-dir "$directory" --parallel 2 --output-on-failure
  done
}
