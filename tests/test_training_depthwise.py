"""The depthwise operators with gradients, beside PyTorch's: sizes, strides, dtypes, statistics, which kernel ran."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mobilenet_ext import ops
from mobilenet_ext._library import native

# channels, height, width, kernel, stride, padding, dilation
SHAPES = [
    (16, 9, 11, 3, 1, 1, 1),
    (16, 9, 12, 3, 2, 1, 1),
    (17, 24, 13, 5, 1, 2, 1),
    (20, 17, 16, 5, 2, 2, 1),
    (5, 13, 14, 3, 1, 2, 2),
    (33, 13, 14, 3, 2, 1, 2),
    (8, 20, 21, 4, 3, 3, 2),
    (8, 1, 1, 3, 1, 1, 1),
    (8, 7, 7, 7, 1, 3, 1),
    (8, 7, 7, 2, 3, 0, 1),
    (1, 40, 9, 3, 1, 0, 1),
    (7, 5, 9, 1, 1, 0, 1),
    (24, 97, 131, 3, 2, 1, 1),
    (3, 6, 600, 3, 1, 1, 1),
    (16, 5, 1, 3, 1, 1, 1),
    (16, 6, 2, 3, 2, 1, 1),
    (12, 3, 5, 3, 1, 1, 1),
    (9, 2, 3, 3, 2, 1, 1),
    (270, 5, 7, 3, 2, 1, 1),
]


@pytest.mark.parametrize("last", [True, False], ids=["channels_last", "contiguous"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_are_those_of_conv2d(shape: tuple[int, ...], last: bool, isa: str):
    channels, height, width, kernel, stride, padding, dilation = shape
    x = (torch.randn(3, channels, height, width) * 2).contiguous(
        memory_format=torch.channels_last if last else torch.contiguous_format
    )
    x.requires_grad_()
    weight = torch.randn(channels, 1, kernel, kernel, requires_grad=True)
    bias = torch.randn(channels, requires_grad=True)
    y = ops.depthwise_conv2d(x, weight, bias, stride, padding, dilation)
    exact = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    expected = F.conv2d(*exact, stride, padding, dilation, channels)
    wants_last = not x.is_contiguous()
    assert y.is_contiguous(memory_format=torch.channels_last if wants_last else torch.contiguous_format)
    g = torch.randn(expected.shape)
    found = torch.autograd.grad(y, [x, weight, bias], g)
    wanted = torch.autograd.grad(expected, exact, g.double())
    # The bound of docs/numerics.md: 2 eps sqrt(K) times the sum of magnitudes.
    magnitudes = [t.detach().abs().requires_grad_() for t in exact]
    whole = F.conv2d(*magnitudes, stride, padding, dilation, channels)
    scales = torch.autograd.grad(whole, magnitudes, g.double().abs())
    pixels = expected.numel() // channels
    eps = torch.finfo(torch.float32).eps
    pairs = [(y, expected, whole.detach(), kernel**2 + 1)]
    pairs += zip(found, wanted, scales, (kernel**2, pixels, pixels), strict=True)
    for ours, right, scale, terms in pairs:
        assert bool(((ours.double() - right).abs() <= 2 * eps * terms**0.5 * scale + 1e-30).all())
    ran = native.counters()
    assert ran[f"depthwise_forward.{isa}"] >= 1
    assert ran[f"depthwise_backward.{isa}"] >= 1


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5])
def test_gradcheck(kernel: int, stride: int):
    x = torch.randn(2, 3, 6, 7, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 1, kernel, kernel, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda *t: ops.depthwise_conv2d(*t, stride=stride, padding=kernel // 2), (x, weight, bias)
    )


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("activation", ["none", "relu6"])
def test_gradcheck_with_norm(activation: str, training: bool):
    double = {"dtype": torch.float64}
    inputs = (torch.randn(3, 3, 5, 6, **double), torch.randn(3, 1, 3, 3, **double), torch.rand(3, **double) + 0.5)
    inputs = tuple(t.requires_grad_() for t in (*inputs, torch.randn(3, **double)))
    mean, var = torch.randn(3, **double), torch.rand(3, **double) + 0.5

    def run(x, weight, gamma, beta):
        return ops.depthwise_conv_bn_act(
            x, weight, gamma, beta, mean.clone(), var.clone(), padding=1, activation=activation, training=training
        )

    assert torch.autograd.gradcheck(run, inputs)


@pytest.mark.parametrize("running", [True, False])
def test_statistics_are_batch_norm_s(running: bool):
    x, weight = torch.randn(4, 6, 9, 9), torch.randn(6, 1, 3, 3)
    mean, var = (torch.zeros(6), torch.ones(6)) if running else (None, None)
    theirs = (torch.zeros(6), torch.ones(6)) if running else (None, None)
    for _ in range(3):
        y = ops.depthwise_conv_bn_act(
            x, weight, None, None, mean, var, padding=1, activation="relu", training=True, momentum=0.3
        )
        bare = F.conv2d(x, weight, padding=1, groups=6)
        expected = F.relu(F.batch_norm(bare, *theirs, None, None, True, 0.3))
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
        assert y.is_contiguous()
    if mean is not None and var is not None and theirs[0] is not None:
        torch.testing.assert_close(mean, theirs[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(var, theirs[1], rtol=1e-5, atol=1e-6)


def test_not_a_number_and_batch_zero():
    x = torch.randn(2, 8, 6, 6)
    x[0, 3, 2, 2] = float("nan")
    x.requires_grad_()
    weight = torch.randn(8, 1, 3, 3, requires_grad=True)
    ops.depthwise_conv2d(x, weight, padding=1).sum().backward()
    assert weight.grad is not None
    assert weight.grad[3].isnan().any()
    assert not weight.grad[:3].isnan().any()
    empty = torch.empty(0, 8, 6, 6, requires_grad=True)
    ops.depthwise_conv2d(empty, weight, padding=1).sum().backward()
    assert empty.grad is not None
    assert empty.grad.shape == empty.shape


def test_same_bits_at_every_number_of_threads():
    x = torch.randn(6, 40, 33, 29, requires_grad=True)
    weight = torch.randn(40, 1, 3, 3, requires_grad=True)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        y = ops.depthwise_conv2d(x, weight, stride=2, padding=1)
        results.append((y, *torch.autograd.grad(y.square().sum(), [x, weight])))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
