"""What the interpreted tests of the Triton kernels share: tensors, blocks, plans and the comparison."""

import math

import torch

from mobilenet_ext.backends.gpu import packing, plans
from mobilenet_ext.spec import BlockSpec, ConvSpec
from mobilenet_ext.tolerance import check

BN = ("weight", "bn_weight", "bn_bias", "running_mean", "running_var")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LAYOUTS = ("contiguous", "channels_last", "slice")
SIZES = ((1, 1), (7, 5), (4, 9))


def sources_of(block, dtype):
    """Signed and scaled so that both clamps of ReLU6 bite; half weights are exact inputs of the comparison."""
    tensors = []
    for _, spec in block.stages():
        fan = math.prod(spec.weight_shape[1:])
        values = {
            "weight": (torch.randn(spec.weight_shape) / math.sqrt(fan)).to(dtype),
            "conv_bias": torch.randn(spec.out_channels).to(dtype),
            "bn_weight": torch.rand(spec.out_channels) * 3 + 1,
            "bn_bias": torch.randn(spec.out_channels) + 1,
            "running_mean": torch.randn(spec.out_channels) / 2,
            "running_var": torch.rand(spec.out_channels) + 0.5,
        }
        tensors += [values[name] for name in spec.sources]
    return tensors


def image(shape, dtype, layout):
    n, c, h, w = shape
    if layout == "slice":
        return (2 * torch.randn(n, c + 2, h + 3, w + 1)).to(dtype)[:, 1:-1, 1:-2, :w]
    x = (2 * torch.randn(shape)).to(dtype)
    return x.to(memory_format=torch.channels_last) if layout == "channels_last" else x


def depthwise_spec(channels, kernel, stride, activation="relu6", padding=None, sources=BN, dilation=1):
    pads = padding or ((kernel - 1) * dilation // 2,) * 4
    return ConvSpec(
        channels, channels, (kernel,) * 2, (stride,) * 2, (dilation,) * 2, pads, True, activation, 1e-5, sources
    )


def assert_right(block, x, sources, run):
    packed = packing.pack((block,), sources, x.dtype)[0]
    y = run(packed, x)
    result = check(y, (block,), x, packed.sources, x.dtype)
    assert y.dtype == x.dtype
    assert result.ok, result
    return y


def inverted(cin, hidden, cout, kernel, stride, residual=False):
    return BlockSpec(
        ConvSpec(cin, hidden, activation="relu6", eps=1e-5, sources=BN) if cin != hidden else None,
        depthwise_spec(hidden, kernel, stride),
        ConvSpec(hidden, cout, eps=1e-5, sources=BN),
        residual=residual,
    )


BLOCKS = {
    "residual": inverted(8, 40, 8, 3, 1, True),
    "stride2": inverted(12, 33, 20, 3, 2),
    "k5": inverted(8, 16, 24, 5, 2),
    "separable": inverted(20, 20, 12, 3, 1),
    "wide": inverted(70, 16, 17, 3, 1),
}
PLANS = {"stages": plans._triton_stages, "depthwise_project": plans._triton_pair, "block": plans._triton_block}
