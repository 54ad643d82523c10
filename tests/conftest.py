"""Fixtures: one run per instruction set, with proof that it and no other ran."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mobilenet_ext._library import native

# Side by side (`pytest -n 2`), each process and those that it starts take their share of the cores: more OpenMP threads
# than cores wait for each other in spinning loops, which made the suite slower than one process.
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if WORKERS > 1:
    SHARE = max(1, torch.get_num_threads() // WORKERS)
    os.environ["OMP_NUM_THREADS"] = str(SHARE)
    torch.set_num_threads(SHARE)

ISAS = [isa["name"] for isa in native.isas() if isa["supported"]]


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.isa) for name in ISAS])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Dispatch capped at one instruction set; afterwards every kernel that ran must have been its own."""
    native.set_isa_cap(request.param)
    native.bump_epoch()
    native.reset_counters()
    try:
        yield request.param
        ran = {key.split(".")[1] for key in native.counters() if "." in key}
        assert ran == {request.param}, f"kernels of {ran} ran where only those of {request.param} may"
    finally:
        native.set_isa_cap(None)
        native.bump_epoch()


@pytest.fixture(autouse=True)
def _outside_the_source_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that tests start must import the installed package, not the sources in the current directory."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _fixed_seed_and_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
