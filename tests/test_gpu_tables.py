"""The check of compiled GPU kernels against the tables of docs/gpu.md, on small reports with planted faults."""

import json
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(shutil.which("c++filt") is None, reason="needs c++filt")

DOCUMENT = ["| all `depthwise_kernel` | 1 | 16 | 16 |"]
ROW = {
    "kernel": "pointwise", "target": "sm_90", "dtype": "fp16", "registers": 96, "shared": 24000, "spills": 0,
    "occupancy": 0.25, "least": 0.125,
}  # fmt: skip


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "tools/ci"), *sys.path])
    import resource_tables

    monkeypatch.setattr(resource_tables, "_SHOWN", ())
    return resource_tables


def logs(folder, registers, name="depthwise_kernel"):
    found = []
    for arch in (80, 90):
        log = folder / f"kernels_sm_{arch}.log"
        log.write_text(
            f"ptxas info    : Compiling entry function '{name}' for 'sm_{arch}'\n"
            "    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n"
            f"ptxas info    : Used {registers} registers, used 1 barriers, 400 bytes cmem[0]\n"
        )
        found.append(log)
    return found


def test_families_hold_their_warps(tables, tmp_path):
    assert list(tables.lost_warps(logs(tmp_path, 128), DOCUMENT)) == []
    assert list(tables.family_table(logs(tmp_path, 128)))[2:] == DOCUMENT
    lost = list(tables.lost_warps(logs(tmp_path, 136), DOCUMENT))
    assert len(lost) == 2
    assert lost[0].startswith("kernels_sm_80: depthwise_kernel holds 8 warps per multiprocessor; all ")


def test_every_kernel_has_a_family_and_every_family_its_kernels(tables, tmp_path):
    lost = list(tables.lost_warps(logs(tmp_path, 64, "other_kernel"), DOCUMENT))
    assert "no row for all `other_kernel`" in lost
    assert "kernels_sm_80: 0 kernels `depthwise_kernel`; 1 are stated" in lost


@pytest.mark.parametrize(
    ("change", "fault"),
    [({}, None), ({"registers": 90}, None), ({"occupancy": 0.19}, "occupancy 0.19"), ({"spills": 8}, "spills 8")],
)
def test_triton_kernels_hold_what_is_stated(tables, tmp_path, change, fault):
    document = list(tables.triton_table([ROW]))
    path = tmp_path / "triton.jsonl"
    path.write_text(json.dumps({**ROW, **change}) + "\n")
    lost = list(tables.lost_triton(tables.read_triton(path), document))
    assert (lost == []) if fault is None else (len(lost) == 1 and fault in lost[0])
    assert list(tables.lost_triton(tables.read_triton(path), [])) == ["no row | pointwise | fp16 | 0.125 |"]
