"""The report says what runs on which kernel, and why the rest does not."""

from __future__ import annotations

import json

import pytest
import torch
from fused_cases import example, make_block, make_run, randomize
from torch import nn

from mobilenet_ext._library import native
from mobilenet_ext.fusion import disabled, fuse
from mobilenet_ext.models import MobileNetV2
from mobilenet_ext.report import fusion_report


def test_whole_network():
    fused = fuse(randomize(MobileNetV2(num_classes=10, alpha=0.25)).eval())
    report = fusion_report(fused)
    assert {row.kernel for row in report.rows} == {""}
    report = fusion_report(fused, example(1, 3, 64))
    assert report.counts["PyTorch"] == 0
    assert report.counts["linear"] == 1
    assert report.counts["block"] + report.counts["conv"] == len(report.rows) - 1
    assert all(row.fused and row.kernel and not row.reason for row in report.rows)
    assert report.rows[-1].path.startswith("classifier")
    text = str(report)
    assert f"{report.counts['block']} as whole blocks" in text
    assert max(map(len, text.splitlines())) <= 140
    loaded = json.loads(report.to_json())
    assert loaded["counts"] == report.counts
    assert loaded["rows"][0]["path"] == report.rows[0].path


def test_training_and_disabled():
    fused = fuse(make_block(), training=False)
    assert [row.kind for row in fusion_report(fused).rows] == ["block"]
    fused.train()
    (row,) = fusion_report(fused, example()).rows
    assert (row.path, row.fused, row.kind, row.reason) == ("(model)", True, "PyTorch", "training: PyTorch")
    fused.eval()
    with disabled():
        assert "switched off" in fusion_report(fused).rows[0].reason


def test_fused_training_is_named():
    fused = fuse(make_block()).train()
    (row,) = fusion_report(fused).rows
    assert (row.kind, row.kernel) == ("block", "training: batch statistics")
    for module in fused.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    (row,) = fusion_report(fused).rows
    assert row.kernel != "training: batch statistics"


def test_one_hook_costs_one_block():
    fused = fuse(make_run())
    fused[1].conv[0][0].register_forward_hook(lambda *_: None)
    report = fusion_report(fused, example())
    assert [(row.path, row.kind) for row in report.rows] == [("0", "block"), ("1", "PyTorch"), ("2", "block")]
    assert "conv.0.0 has a forward hook" in report.rows[1].reason
    assert any("as a whole" in note for note in report.notes)


def test_refused_block_says_why():
    model = make_run()
    model[1].conv[3] = nn.GroupNorm(4, 16)
    report = fusion_report(fuse(model))
    (row,) = [row for row in report.rows if row.kind == "PyTorch"]
    assert row.path == "1.conv.3"
    assert not row.fused
    (note,) = [note for note in report.notes if note.startswith("1 as a whole")]
    assert "GroupNorm" in note
    assert report.counts == {"block": 3, "conv": 0, "linear": 0, "PyTorch": 1}


def test_model_without_a_match():
    report = fusion_report(fuse(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Dropout())))
    assert [(row.path, row.kind) for row in report.rows] == [("0", "PyTorch"), ("1", "PyTorch")]
    assert all(row.reason for row in report.rows)


def test_plain_model_is_told_to_fuse():
    (row,) = fusion_report(make_block()).rows
    assert row.reason == "supported, but not fused: call fuse()"


def test_wrapped_model():
    report = fusion_report(torch.compile(fuse(make_run())))
    assert [row.path for row in report.rows] == ["_orig_mod.0", "_orig_mod.1", "_orig_mod.2"]
    assert report.counts["block"] == 3


def test_the_report_changes_nothing():
    fused = fuse(make_run())
    classes = [type(module) for module in fused.modules()]
    parameters = list(fused.parameters())
    fusion_report(fused, example())
    assert classes == [type(module) for module in fused.modules()]
    assert all(a is b for a, b in zip(parameters, fused.parameters(), strict=True))


def test_shared_block_is_one_row():
    block = make_block()
    assert len(fusion_report(fuse(nn.ModuleList([block, block]))).rows) == 1


def test_denormals_are_counted():
    model = make_block()
    with torch.no_grad():
        model.conv[2].weight[:3] *= 1e-41
    fused = fuse(model)
    assert fusion_report(fused).denormals_flushed == 0
    report = fusion_report(fused, example())
    assert report.denormals_flushed >= 3 * 64 * 0.9
    assert f"{report.denormals_flushed} denormal weights" in str(report)


def test_not_a_module():
    with pytest.raises(TypeError, match=r"model is a str; allowed: a torch\.nn\.Module"):
        fusion_report("model")


def test_a_machine_without_vector_kernels_stays_with_pytorch(monkeypatch):
    """Scalar kernels are for tests: dispatch prefers PyTorch unless somebody chose them."""
    monkeypatch.setattr(native, "isa", lambda: "scalar")
    monkeypatch.setattr(native, "isa_is_capped", lambda: False)  # other tests may have left a cap
    fused = fuse(make_block())
    report = fusion_report(fused)
    assert "none of the vector instruction sets" in str(report.rows[0].reason)
    native.reset_counters()
    with torch.no_grad():
        fused(example())
    assert native.counters() == {}
    monkeypatch.setattr(native, "isa_is_capped", lambda: True)
    assert fusion_report(fuse(make_block())).rows[0].fused
