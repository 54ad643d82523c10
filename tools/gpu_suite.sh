#!/usr/bin/env bash
# The whole GPU suite on a machine with a GPU: sanitizers on small shapes, the tests marked `cuda`, then the benchmark.
# Writes one report, gpu_report.md in the current directory or the file given. The package has to be installed.
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
report=${1:-$PWD/gpu_report.md}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
status=0

section() { # title, then a command; its output goes into the report
  printf '\n## %s\n\n```\n' "$1" >>"$report"
  shift
  "$@" >"$work/log" 2>&1 || { status=1; echo "exit status not 0" >>"$work/log"; }
  cat "$work/log" >>"$report"
  printf '```\n' >>"$report"
}

echo "# GPU report" >"$report"
section "Machine" python -m mobilenet_ext info
if command -v nvidia-smi >/dev/null; then section "nvidia-smi" nvidia-smi; fi
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    section "compute-sanitizer $tool" compute-sanitizer --tool "$tool" --error-exitcode 1 \
      python -m pytest "$root/tests/test_on_gpu.py" -q -m cuda -k small
  done
else
  printf '\ncompute-sanitizer is not on the PATH: no memcheck, no racecheck\n' >>"$report"
fi
section "Tests" python -m pytest "$root/tests/test_on_gpu.py" -q -m cuda
section "Kernels and networks" python "$root/benchmarks/gpu.py"
echo "written: $report"
exit $status
