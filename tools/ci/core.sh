# The torch-free core and its C++ tests with every compiler that we promise.
# shellcheck shell=bash

stage_core() {
  local compiler options=() tests=()
  for compiler in g++ g++-11 clang++; do
    printf '\n%s\n' "$($compiler --version | head -n 1)"
    core_build "$WORK/core-$compiler" -DCMAKE_CXX_COMPILER="$compiler" "${options[@]}"
    count_tests ctest --test-dir "$WORK/core-$compiler" --parallel 2 --output-on-failure "${tests[@]}"
    # Instruction counts are one compiler's, and nvcc's kernels need to run on the CPU only once.
    tests=(-LE slow) options=(-DMOBILENET_EXT_EMULATE_CUDA=OFF)
  done
}

# core_build DIRECTORY CMAKE_OPTION...
core_build() {
  local directory=$1
  shift
  cmake -S . -B "$directory" -G Ninja -DMOBILENET_EXT_CORE_ONLY=ON -DMOBILENET_EXT_BUILD_TESTS=ON \
    -DMOBILENET_EXT_WERROR=ON "$@" >"$WORK/configure.log" 2>&1 || { cat "$WORK/configure.log"; return 1; }
  cmake --build "$directory" >"$WORK/build.log" 2>&1 || { cat "$WORK/build.log"; return 1; }
}
