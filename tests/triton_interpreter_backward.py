"""The backward Triton kernels under Triton's interpreter, against float64: run by test_triton.py."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from triton_cases import DTYPES, depthwise_spec, image

from mobilenet_ext.backends import aten
from mobilenet_ext.backends.triton import batch_norm_backward, depthwise_backward
from mobilenet_ext.backends.triton.common import Geometry


def gradients(x, weight, dy, stride, pads):
    top, bottom, left, right = pads
    padded = F.pad(x.double(), (left, right, top, bottom)).requires_grad_()
    w = weight.double().requires_grad_()
    F.conv2d(padded, w, None, stride, groups=x.shape[1]).backward(dy.double())
    h, width = padded.shape[2:]
    return padded.grad[:, :, top : h - bottom, left : width - right], w.grad


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("kernel", "stride"), list(itertools.product((3, 5), (1, 2))))
@pytest.mark.parametrize(("size", "pads"), [((7, 5), None), ((6, 9), (0, 1, 2, 1)), ((1, 1), None)], ids=str)
def test_depthwise_gradients(dtype, kernel, stride, size, pads):
    channels = 21
    size = size if kernel == 3 else (min(size[0], 4), min(size[1], 5))
    pads = pads or (kernel // 2,) * 4
    spec = depthwise_spec(channels, kernel, stride, padding=pads)
    batch = 2 if kernel == 3 else 1
    x = image((batch, channels, *size), dtype, "channels_last")
    weight = torch.randn(channels, 1, kernel, kernel).to(dtype)
    geometry = Geometry(spec.kernel, spec.stride, spec.dilation, pads[0], pads[2], *spec.output_size(*size))
    dy = image((batch, channels, geometry.height, geometry.width), dtype, "contiguous")
    expected_dx, expected_dw = gradients(x, weight, dy, stride, pads)
    magnitude_dx, magnitude_dw = gradients(x.abs(), weight.abs(), dy.abs(), stride, pads)
    eps, terms = torch.finfo(dtype).eps, dy.shape[0] * dy.shape[2] * dy.shape[3]
    packed = weight.squeeze(1).permute(1, 2, 0).contiguous()
    dx = depthwise_backward.backward_data(dy, packed, geometry, *size)
    assert ((dx.double() - expected_dx).abs() <= 2 * eps * kernel * magnitude_dx).all()
    dw = depthwise_backward.backward_weight(x, dy, geometry)
    error = (dw.permute(2, 0, 1)[:, None].double() - expected_dw).abs()
    assert (error <= 2 * torch.finfo(torch.float32).eps * math.sqrt(terms) * magnitude_dw).all()
    assert torch.equal(dw, depthwise_backward.backward_weight(x, dy, geometry))


def test_weight_gradient_over_many_chunks(monkeypatch):
    monkeypatch.setattr(depthwise_backward, "WEIGHT_PROGRAMS", 4)
    x, dy = image((3, 40, 5, 6), torch.float32, "channels_last"), torch.randn(3, 40, 5, 6)
    geometry = Geometry((3, 3), (1, 1), (1, 1), 1, 1, 5, 6)
    _, expected = gradients(x, torch.zeros(40, 1, 3, 3), dy, 1, (1, 1, 1, 1))
    dw = depthwise_backward.backward_weight(x, dy, geometry)
    torch.testing.assert_close(dw.permute(2, 0, 1)[:, None].double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("activation", ["none", "relu", "relu6"])
def test_batch_norm_backward(dtype, batch, activation):
    channels = 37
    v, dy = image((2, channels, 5, 7), dtype, "channels_last"), image((2, channels, 5, 7), dtype, "contiguous")
    exact = v.double()
    mean = exact.mean((0, 2, 3)) if batch else torch.randn(channels).double()
    var = exact.var((0, 2, 3), unbiased=False) if batch else torch.rand(channels).double() + 0.5
    weight, bias = torch.rand(channels) * 2 + 0.5, torch.randn(channels) + 2
    arguments = [exact.requires_grad_(), weight.double().requires_grad_(), bias.double().requires_grad_()]
    z = F.batch_norm(arguments[0], mean.clone(), var.clone(), arguments[1], arguments[2], batch, 0.0, 1e-5)
    aten._ACTIVATIONS[activation](z).backward(dy.double())
    rstd = torch.rsqrt(var + 1e-5)
    results = batch_norm_backward.batch_norm_act_backward(
        v.detach(), dy, mean.float(), rstd.float(), weight, bias, activation, batch
    )
    # Masks may differ where the value lies within rounding of a kink: none of these 2590 does.
    distance = torch.minimum(z.abs(), (z - 6).abs()).min()
    assert distance > 1e-5
    for actual, argument in zip(results, arguments, strict=True):
        eps = torch.finfo(actual.dtype).eps
        scale = argument.grad.abs().amax()
        assert (actual.double() - argument.grad).abs().max() <= 8 * eps * scale * (1 if actual.dtype == dtype else 4)


def test_batch_norm_backward_masks_are_open_at_both_ends():
    v = torch.tensor([0.0, 6.0, 3.0, -1.0, 7.0]).view(1, 1, 1, 5)
    one, zero = torch.ones(1), torch.zeros(1)
    dv, _, dbias = batch_norm_backward.batch_norm_act_backward(
        v, torch.ones_like(v), zero, one, one, zero, "relu6", False
    )
    assert dv.flatten().tolist() == [0, 0, 1, 0, 0]
    assert dbias.item() == 1
