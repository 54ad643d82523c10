# Compilers and tools from the system's packages; as root on Debian and Ubuntu they are installed where missing.
# shellcheck shell=bash

stage_packages() {
  local -A package=(
    [g++]=g++ [g++-11]=g++-11 [clang++]=clang [aarch64-linux-gnu-g++]=g++-aarch64-linux-gnu
    [qemu-aarch64]=qemu-user [nm]=binutils [cmake]=cmake [ninja]=ninja-build
  )
  local command missing=()
  for command in "${!package[@]}"; do
    command -v "$command" >/dev/null || missing+=("${package[$command]}")
  done
  if [[ ${#missing[@]} == 0 ]]; then
    echo "nothing to install"
    return
  fi
  if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
    fail "please install: ${missing[*]}"
  fi
  echo "installing ${missing[*]}"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >"$WORK/apt.log" 2>&1 ||
    { tail -n 20 "$WORK/apt.log"; return 1; }
}
