"""Gradients of whole blocks through the dispatch, with the Triton kernels interpreted: run by test_triton.py."""

import copy

import pytest
import torch
from test_gpu_gradients import depthwise_job, gradients_of, make_block, norm_job

from mobilenet_ext import autograd
from mobilenet_ext.backends.gpu import gradients
from mobilenet_ext.backends.gpu import runtime as runtime_module
from mobilenet_ext.backends.gpu.runtime import Runtime
from mobilenet_ext.backends.gpu.trial import try_out_gradient
from mobilenet_ext.fusion import fuse


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("activation", ["none", "relu", "relu6"])
def test_the_check_accepts_the_batch_norm_kernel(dtype, activation):
    job = norm_job(dtype, activation)
    verdict = try_out_gradient(job, gradients.candidates(job, ("triton",))[:1], lambda call: 1.0)
    assert verdict.rejected == {}
    assert "triton.gradient:0" in verdict.seconds


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", gradients.KINDS[:2])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 2, (1, 1)), (5, 1, (2, 1))])
def test_the_check_accepts_the_depthwise_kernels(dtype, kind, kernel, stride, padding):
    job = depthwise_job(kind, kernel, stride, padding, dtype)
    verdict = try_out_gradient(job, gradients.candidates(job, ("triton",))[:1], lambda call: 1.0)
    assert verdict.rejected == {}
    assert "triton.gradient:0" in verdict.seconds


def test_a_block_takes_them(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("MOBILENET_EXT_GPU", "trust")
    runtime = Runtime()
    monkeypatch.setattr(runtime_module, "runtime", runtime)
    monkeypatch.setattr(autograd, "_has_kernels", lambda grad: not torch.is_grad_enabled())
    block, x = make_block(), torch.randn(2, 8, 7, 5)
    fused = fuse(copy.deepcopy(block), training=False)
    for ours, wanted in zip(gradients_of(fused, x), gradients_of(block, x), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-4)
    name = "triton.gradient:0"
    assert runtime.counters == {f"depthwise_input {name}": 1, f"depthwise_weight {name}": 1, f"batch_norm {name}": 3}
