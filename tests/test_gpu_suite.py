"""``tools/gpu_suite.sh`` with stand-ins for its programs: from where it runs them, with what, and when it fails."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
STAND_IN = """#!/bin/bash
echo "$(basename "$0") in $PWD caching=${PYTORCH_NO_CUDA_MEMORY_CACHING:-on}: $*" >>"$CALLS"
if [[ $(basename "$0") == compute-sanitizer ]]; then
  while (($#)) && [[ $1 != */python* ]]; do shift; done
  exec "$@"
fi
[[ "$*" != *pytest* ]] || echo "$SUMMARY"
"""


def run(tmp_path: Path, summary: str, python: str = "python") -> tuple[int, list[str], str]:
    """Exit status, the calls of the programs, and the report."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in (python, "compute-sanitizer"):
        (programs / name).write_text(STAND_IN)
        (programs / name).chmod(0o755)
    for name in ("bash", "env", "dirname", "basename", "realpath", "mktemp", "rm", "cat", "grep"):
        (programs / name).symlink_to(next(p for p in (Path("/usr/bin", name), Path("/bin", name)) if p.exists()))
    calls = tmp_path / "calls"
    environment = {"PATH": str(programs), "CALLS": str(calls), "SUMMARY": summary, "TMPDIR": str(tmp_path)}
    command = [str(programs / "bash"), str(ROOT / "tools" / "gpu_suite.sh"), "report.md"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    return done.returncode, calls.read_text().splitlines(), (tmp_path / "report.md").read_text()


@pytest.mark.parametrize("python", ["python", "python3"])
def test_it_runs_outside_the_checkout(tmp_path, python):
    status, calls, report = run(tmp_path, "3 passed, 1 skipped in 1s", python)
    assert status == 0, report
    assert len([call for call in calls if call.startswith(python)]) == 5  # info, two sanitizers, tests, benchmark
    for call in calls:
        folder = call.split(" in ")[1].split(" caching=")[0]
        assert Path(folder).parent == tmp_path
        assert ROOT not in (Path(folder), *Path(folder).parents)
    assert [name for name in os.listdir(tmp_path) if name.startswith("tmp")] == []


def test_what_it_passes_on(tmp_path):
    _, calls, _ = run(tmp_path, "3 passed in 1s")
    sanitized = [call for call in calls if call.startswith("compute-sanitizer")]
    assert all("--target-processes all" in call for call in sanitized)
    assert ["caching=1" in call for call in sanitized] == [True, False]
    assert "caching=1" not in calls[-1]
    assert calls[-1].endswith(f"benchmarks/gpu.py --json {tmp_path / 'report.json'}")


def test_all_skipped_is_a_failure(tmp_path):
    status, _, report = run(tmp_path, "12 skipped in 1s")
    assert status == 1
    assert report.count("FAILED: no test passed") == 3
