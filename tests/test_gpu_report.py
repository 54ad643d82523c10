"""What ``fusion_report`` says of the checks on a GPU: verdicts of a runtime with faked candidates and clock."""

import json

import pytest
import torch
from test_gpu_choice import Fakes, make_runtime

from mobilenet_ext import gpu_verdicts, report
from mobilenet_ext.backends.gpu import packing, precision
from mobilenet_ext.fusion import fuse
from mobilenet_ext.models import InvertedResidual
from mobilenet_ext.modules.mixin import fused_chains
from mobilenet_ext.spec import LinearSpec


@pytest.fixture
def model():
    return fuse(torch.nn.Sequential(*(InvertedResidual(8, 8, 1, 4) for _ in range(2))).eval())


@pytest.fixture
def checked(monkeypatch, tmp_path, model):
    """Runs the model's one kind of block through a check; returns a function that takes the candidates' times."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("MOBILENET_EXT_GPU", raising=False)
    monkeypatch.setattr(precision, "conv_tf32", lambda: False)  # the default of cuDNN would be in the dtype
    monkeypatch.setattr(report, "_is_on_gpu", lambda module, chain: True)

    def check(**seconds):
        runtime = make_runtime(Fakes(**{name.replace("_", ".", 1): time for name, time in seconds.items()}))
        monkeypatch.setattr(gpu_verdicts, "runtime", runtime)
        match = next(iter(fused_chains(model))).match
        sources = [getattr(model.get_submodule(source.path), source.name) for source in match.sources]
        packed = packing.pack(match.chain, sources, torch.float32)
        runtime.run_item(packed[0], torch.randn(3, 8, 7, 5))
        return report.fusion_report(model)

    return check


def test_kept_rejected_and_slower(checked):
    found = checked(cuda_wrong=0.1, cuda_block=0.5, triton_slow=3.0, triton_raises=0.1)
    (verdict,) = found.gpu
    assert verdict.paths == ("0", "1")  # one verdict for both blocks: they are the same item
    assert (verdict.operation, verdict.choice) == ("8->32->8, 3x3 s1", "cuda.block")
    assert (verdict.dtype, verdict.batch, verdict.image, verdict.layout) == ("float32", 4, "8x7x5", "nchw")
    assert verdict.not_checked == {}
    outcomes = list(verdict.outcomes())
    assert "cuda.block: kept, 0.50 of PyTorch's time" in outcomes
    assert "triton.slow: right, not kept, 3.00 of PyTorch's time" in outcomes
    assert "triton.raises: rejected, RuntimeError: no code for this architecture" in outcomes
    assert any(line.startswith("cuda.wrong: rejected, wrong by ") for line in outcomes)
    assert [row.kernel for row in found.rows] == ["cuda.block", "cuda.block"]


def test_every_form_shows_it(checked):
    found = checked(cuda_wrong=0.1, triton_block=0.5)
    text, markdown, loaded = str(found), found.to_markdown(), json.loads(found.to_json())
    assert "Checked on the GPU" in text
    assert max(map(len, text.splitlines())) <= 140
    (row,) = [line for line in markdown.splitlines() if "cuda.wrong: rejected" in line]
    assert "| triton.block | agrees with PyTorch and is 2.00 times as fast |" in row
    assert "float32, up to 4 x 8x7x5, nchw" in row
    assert row.count(" | ") == len(gpu_verdicts.HEADINGS) - 1
    (entry,) = loaded["gpu"]
    assert entry["choice"] == "triton.block"
    assert list(entry["rejected"]) == ["cuda.wrong"]
    assert entry["seconds"] == {"aten": 1.0, "triton.block": 0.5}
    for word in ("triton.block", "cuda.wrong", "rejected", "float32"):
        assert word in text


def test_no_faster_kernel_and_a_backend_without_a_candidate(checked):
    (verdict,) = checked(cuda_slow=2.0).gpu
    assert (verdict.choice, verdict.why) == ("aten", "PyTorch; no kernel here is faster")
    assert list(verdict.not_checked) == ["triton"]
    assert verdict.not_checked["triton"]
    assert any(line.startswith("triton: not checked, ") for line in verdict.outcomes())


def test_trust_and_off_are_said(checked, monkeypatch):
    monkeypatch.setenv("MOBILENET_EXT_GPU", "trust")
    (verdict,) = checked(cuda_block=0.5).gpu
    assert verdict.why == "trusted without a check (MOBILENET_EXT_GPU=trust)"
    monkeypatch.setenv("MOBILENET_EXT_GPU", "off")
    found = checked(cuda_block=0.5)
    assert found.gpu == ()
    assert found.notes == ("MOBILENET_EXT_GPU=off: on the GPU every fused item runs as PyTorch's operators",)


def test_without_a_check_there_is_no_table(model):
    found = report.fusion_report(model)
    assert found.gpu == ()
    assert "Checked on the GPU" not in str(found)
    assert json.loads(found.to_json())["gpu"] == []
    assert gpu_verdicts.choices_of(LinearSpec(4, 2)) == "aten"
