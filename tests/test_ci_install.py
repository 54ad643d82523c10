"""The CI stage ``install`` asks for the CUDA part exactly where there is an nvcc."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("nvcc", ["/opt/cuda/bin/nvcc", ""], ids=["with nvcc", "without"])
@pytest.mark.parametrize("before", ["0", "1", None])
def test_the_cuda_part_is_asked_for_where_nvcc_is(nvcc, before):
    script = f"""
set -euo pipefail
source tools/ci/install.sh
toolkit_nvcc() {{ echo "{nvcc}"; }}
ask_for_cuda
env | grep '^MOBILENET_EXT_CUDA=' || echo unset
"""
    environment = {"PATH": "/usr/bin:/bin", **({} if before is None else {"MOBILENET_EXT_CUDA": before})}
    found = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == (["MOBILENET_EXT_CUDA=1"] if nvcc else ["unset"])
