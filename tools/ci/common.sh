# Sourced by tools/check: the work directory, stage headers, counting of tests.
# shellcheck shell=bash

# CHECK_DIR keeps environments and build trees from one run to the next; without it they are removed at the end.
WORK=${CHECK_DIR:-$(mktemp -d "${TMPDIR:-/tmp}/mobilenet_ext_check.XXXXXX")}
mkdir -p "$WORK"
VENV=$WORK/venv             # the environment that `install` fills with the README's test command
WHEELS=$WORK/wheels
FIRST_RESULTS=$WORK/first.xml
SECONDS=0
STAGE=""
PASSED=0
FAILED=0
TIMES=""
export PIP_DISABLE_PIP_VERSION_CHECK=1

fail() {
  echo "tools/check: $*" >&2
  exit 1
}

# Prints a header, runs the function stage_<name>, prints its time.
run_stage() {
  STAGE=$1
  local start=$SECONDS
  printf '\n=== %s (at %d s)\n' "$STAGE" "$start"
  "stage_$STAGE"
  TIMES+="  $STAGE $((SECONDS - start)) s"
  printf -- '--- %s: %d s\n' "$STAGE" "$((SECONDS - start))"
  STAGE=""
}

# Runs a test command, shows its output, and adds its counts to the totals. Reads pytest's and ctest's closing lines.
count_tests() {
  local log=$WORK/tests.log status=0
  "$@" 2>&1 | tee "$log" || status=$?
  local summary passed failed
  summary=$(grep -E '[0-9]+ (passed|failed|errors?).* in [0-9.]+s|tests? passed(, [0-9]+ tests? failed)? out of' "$log" | tail -n 1 || true)
  if [[ $summary =~ ([0-9]+)\ tests?\ failed\ out\ of\ ([0-9]+) ]]; then
    failed=${BASH_REMATCH[1]}
    passed=$((BASH_REMATCH[2] - failed))
  elif [[ $summary =~ tests?\ passed\ out\ of\ ([0-9]+) ]]; then # newer CMake, when none failed
    failed=0
    passed=${BASH_REMATCH[1]}
  else
    passed=$(grep -oE '[0-9]+ passed' <<<"$summary" | cut -d' ' -f1 || true)
    failed=$({ grep -oE '[0-9]+ (failed|errors?)' <<<"$summary" || true; } | awk '{ n += $1 } END { print n + 0 }')
  fi
  PASSED=$((PASSED + ${passed:-0}))
  FAILED=$((FAILED + ${failed:-0}))
  if [[ $status == 0 && ${passed:-0} == 0 ]]; then
    fail "no test ran in: $*"
  fi
  return "$status"
}

# A new virtual environment.
new_venv() {
  "${PYTHON:-python3}" -m venv "$1"
}

# The nvcc of a toolkit that is here, as the build would find it; nothing where there is none. Needs $VENV.
toolkit_nvcc() {
  (cd build_backend && "$VENV/bin/python" -B -c 'import environment; print(environment.find_nvcc() or "")')
}

# The last line says how many tests passed, all stages together.
finish() {
  local status=$1
  [[ -n ${CHECK_DIR:-} ]] || rm -rf "$WORK"
  if [[ $status != 0 && $FAILED == 0 ]]; then
    FAILED=1 # a stage that fails outside a test runner still counts as a failure
  fi
  printf '\n%s\n' "stages:$TIMES  total $SECONDS s"
  [[ -z $STAGE ]] || echo "stage $STAGE failed"
  echo "$PASSED passed, $FAILED failed"
  trap - EXIT
  exit "$status"
}
trap 'finish $?' EXIT
