#!/usr/bin/env bash
# The whole GPU suite on a machine with a GPU: sanitizers on small shapes, the tests marked `cuda`, then the benchmark.
# Writes gpu_report.md in the current directory, or the file given, and beside it the benchmark's figures as JSON.
# The package has to be installed.
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
report=$(realpath -m "${1:-gpu_report.md}")
python=$(command -v python || command -v python3) || { echo "neither python nor python3 is on the PATH" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1 # `python -m` looks in the current directory first: a checkout there hides the installed package
status=0

section() { # title, then a command; its output goes into the report
  printf '\n## %s\n\n```\n' "$1" >>"$report"
  shift
  "$@" >log 2>&1 || { status=1; echo "exit status not 0" >>log; }
  cat log >>"$report"
  printf '```\n' >>"$report"
}

tests() { # title, then a command that runs pytest; when every test is skipped pytest says 0, which shows nothing here
  section "$@"
  grep -qE '[0-9]+ passed' log || { status=1; printf '\nFAILED: no test passed\n' >>"$report"; }
}

echo "# GPU report" >"$report" || exit 1
section "Machine" "$python" -m mobilenet_ext info
if command -v nvidia-smi >/dev/null; then section "nvidia-smi" nvidia-smi; fi
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    # With PyTorch's caching allocator an access past one tensor would lie within the next, unseen by memcheck.
    uncached=$([[ $tool == memcheck ]] && echo PYTORCH_NO_CUDA_MEMORY_CACHING=1)
    tests "compute-sanitizer $tool" env $uncached compute-sanitizer --tool "$tool" --target-processes all \
      --error-exitcode 1 "$python" -m pytest "$root/tests/test_on_gpu.py" -q -m cuda -k small
  done
else
  printf '\ncompute-sanitizer is not on the PATH: no memcheck, no racecheck\n' >>"$report"
fi
tests "Tests" "$python" -m pytest "$root/tests/test_on_gpu.py" -q -m cuda
section "Kernels and networks" "$python" "$root/benchmarks/gpu.py" --json "${report%.md}.json"
echo "written: $report"
exit $status
