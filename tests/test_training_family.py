"""Training with what the training kernels do not cover: PyTorch trains it, right, and the report says why."""

import copy

import pytest
import torch
import torch.nn.functional as F
from fused_cases import example, make_block, randomize
from test_training_modules import assert_same_step, freeze_norms, step
from torch import nn

import mobilenet_ext
from mobilenet_ext import _C, ops
from mobilenet_ext.backends.aten import activate
from mobilenet_ext.spec import ACTIVATIONS, ConvSpec

FUNCTIONAL = [name for name in ACTIVATIONS if name != "leaky_relu"]


def small_v3():
    torchvision = pytest.importorskip("torchvision")
    model = randomize(torchvision.models.mobilenet_v3_small(num_classes=5))
    model.classifier[2].p = 0.0
    return model


def kernels_and_reasons(model):
    rows = mobilenet_ext.fusion_report(model).rows
    return [row.kernel for row in rows], [row.reason for row in rows]


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "batch"])
def test_mobilenet_v3_step(frozen):
    plain = small_v3().train()
    fused = mobilenet_ext.fuse(copy.deepcopy(plain))
    for model in (plain, fused):
        if frozen:
            freeze_norms(model)
    # Frozen, a run with a block that no training kernel takes has the fused forward and PyTorch's backward.
    assert_same_step(fused, plain, example(2, 3, 64), native_backward=not frozen)


def test_report_names_what_pytorch_trains():
    kernels, reasons = kernels_and_reasons(mobilenet_ext.fuse(small_v3()).train())
    assert "training: batch statistics" in kernels
    assert "training: squeeze-and-excitation, which PyTorch runs" in reasons
    assert "training: the activation hardswish, which PyTorch runs" in reasons


@pytest.mark.parametrize("activation", [nn.Hardswish, nn.SiLU, lambda: nn.LeakyReLU(0.1)])
def test_block_with_another_activation(activation):
    block = make_block()
    for parent in list(block.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, (nn.ReLU, nn.ReLU6)):
                setattr(parent, name, activation())
    plain = block.train()
    fused = mobilenet_ext.fuse(copy.deepcopy(plain))
    (row,) = mobilenet_ext.fusion_report(fused).rows
    assert row.fused
    assert row.reason.startswith("training: the activation ")
    step(fused, example())
    step(plain, example())
    for ours, theirs in zip(fused.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)
    for ours, theirs in zip(fused.buffers(), plain.buffers(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("training", [False, True], ids=["frozen", "batch"])
@pytest.mark.parametrize("activation", FUNCTIONAL)
def test_depthwise_conv_bn_act(activation, training):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 11, 9, 7, generator=generator).contiguous(memory_format=torch.channels_last)
    leaves = [x, torch.randn(11, 1, 3, 3, generator=generator)]
    leaves += [torch.rand(11, generator=generator) + 0.5, torch.randn(11, generator=generator)]
    results = []
    for fused in (True, False):
        a, w, gamma, beta = (leaf.clone().requires_grad_() for leaf in leaves)
        mean, var = torch.zeros(11), torch.ones(11)
        before = _C.counters().get("depthwise_backward", 0)
        if fused:
            y = ops.depthwise_conv_bn_act(
                a, w, gamma, beta, mean, var, padding=1, activation=activation, training=training
            )
        else:
            z = F.batch_norm(F.conv2d(a, w, padding=1, groups=11), mean, var, gamma, beta, training)
            y = activate(ConvSpec(11, 11, activation=activation), z)
        (y * torch.linspace(-1, 1, y.numel()).reshape(y.shape)).sum().backward()
        if fused:
            ran = _C.counters().get("depthwise_backward", 0) > before
            assert ran == (activation in ("none", "relu", "relu6"))
            assert y.is_contiguous(memory_format=torch.channels_last)
        results.append([y.detach(), a.grad, w.grad, gamma.grad, beta.grad, mean, var])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
