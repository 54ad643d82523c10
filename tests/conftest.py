"""Fixtures: one run per instruction set, with proof that it and no other ran."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mobilenet_ext._library import native

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
