"""The places where PyTorch keeps storages and versions: found, checked, and done without where they cannot be."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from mobilenet_ext import layout


def replace_data(t: Tensor) -> None:
    t.data = t.detach().clone()


def move_within_storage(t: Tensor) -> None:
    """Another part of the same storage, of the same size."""
    t.data = t.untyped_storage() and torch.as_strided(t.data, t.shape, t.stride(), t.storage_offset() + 1)


def swap(t: Tensor) -> None:
    torch.utils.swap_tensors(t, torch.zeros_like(t))


def in_place(t: Tensor) -> None:
    with torch.no_grad():
        t.mul_(1)


def through_a_view(t: Tensor) -> None:
    t.detach().view(-1)[:1].fill_(3)


def set_storage(t: Tensor) -> None:
    with torch.no_grad():
        t.set_(torch.zeros(64))


EDITS = [replace_data, move_within_storage, swap, in_place, through_a_view, set_storage]


def test_the_offsets_are_found_here():
    """Without them every call is slower; a PyTorch that moves its fields shows here first."""
    assert layout.offsets() is not None
    assert layout.watch([torch.zeros(3)]) is not None


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("kind", ["tensor", "parameter", "slice"])
def test_an_edit_is_seen(edit, kind):
    base = torch.randn(40)
    tensors = {"tensor": base[:20], "parameter": nn.Parameter(base[:20]), "slice": base[7:27:2]}
    watched = [torch.randn(5), tensors[kind], torch.zeros((), dtype=torch.int64)]
    unchanged = layout.watch(watched)
    assert unchanged is not None
    assert unchanged()
    edit(watched[1])
    assert not unchanged()


def test_reading_is_no_edit():
    tensors = [torch.randn(4, 3), nn.Parameter(torch.randn(2))]
    unchanged = layout.watch(tensors)
    assert unchanged is not None
    _ = tensors[0].sum(), tensors[1].detach() + 1, tensors[0][1:], list(tensors[0])
    assert unchanged()


def test_places_that_disagree_with_the_getters_are_not_used(monkeypatch):
    found = layout.offsets()
    assert found is not None
    # The storage offset's place stands for the version's: plausible words, wrong values.
    impl, storage, counter, offset, data, version = found
    monkeypatch.setattr(layout, "offsets", lambda: (impl, storage, counter, offset, data, (version + 8) % 24))
    tensor = torch.randn(3)
    for _ in range(5):
        tensor.add_(1)
    assert layout.watch([tensor]) is None


def test_getters_serve_where_the_places_are_unknown():
    """The same verdicts with MOBILENET_EXT_GETTERS=1, in a process of its own because offsets are found once."""
    program = """
import torch, mobilenet_ext
from mobilenet_ext import layout
assert layout.offsets() is None
model = mobilenet_ext.fuse(mobilenet_ext.models.MobileNetV2(alpha=0.35).eval())
x = torch.randn(1, 3, 32, 32)
with torch.no_grad():
    before = model(x), model(x)
    next(model.parameters()).mul_(1.5)
    after = model(x)
assert torch.equal(*before) and not torch.equal(before[0], after)
"""
    environment = {**os.environ, "MOBILENET_EXT_GETTERS": "1"}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment, timeout=300)
