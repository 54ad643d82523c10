"""Single forward Triton kernels under Triton's interpreter, against float64: run by test_triton.py."""

import itertools

import pytest
import torch
from triton_cases import (
    BN,
    DTYPES,
    LAYOUTS,
    SIZES,
    assert_right,
    depthwise_spec,
    image,
    sources_of,
)

from mobilenet_ext.backends.gpu import plans
from mobilenet_ext.backends.triton import common, depthwise
from mobilenet_ext.backends.triton.common import Geometry
from mobilenet_ext.spec import BlockSpec, ConvSpec


def test_the_interpreter_runs():
    assert common.INTERPRETED


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("kernel", "stride"), list(itertools.product((3, 5), (1, 2))))
@pytest.mark.parametrize("layout", LAYOUTS)
def test_depthwise(dtype, kernel, stride, layout):
    # The interpreter takes about a second per case, so sizes rotate instead of multiplying.
    size = SIZES[(DTYPES.index(dtype) + LAYOUTS.index(layout) + kernel + stride) % 3]
    channels = 20 if kernel == 3 else 9
    size = size if kernel == 3 else (min(size[0], 4), 5)
    block = BlockSpec(depthwise=depthwise_spec(channels, kernel, stride))
    x = image((2 if kernel == 3 else 1, channels, *size), dtype, layout)
    y = assert_right(block, x, sources_of(block, dtype), plans.partial(plans._triton_stages, 0))
    planar = x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last)
    assert y.is_contiguous(memory_format=torch.contiguous_format if planar else torch.channels_last)


@pytest.mark.parametrize("padding", ["same", (0, 1, 2, 0), (0, 0, 0, 0)], ids=str)
@pytest.mark.parametrize("activation", ["none", "relu", "relu6"])
@pytest.mark.parametrize("layout", LAYOUTS[:2])
def test_depthwise_paddings_and_activations(padding, activation, layout):
    spec = depthwise_spec(6, 3, 2, activation, padding, ("weight", "conv_bias"))
    block = BlockSpec(depthwise=spec)
    x = image((1, 6, 6, 5), torch.float32, layout)
    assert_right(block, x, sources_of(block, torch.float32), plans.partial(plans._triton_stages, 1))


def test_depthwise_dilation_and_wide_channels():
    block = BlockSpec(depthwise=depthwise_spec(70, 3, 1, dilation=2))
    x = image((1, 70, 6, 5), torch.float32, "channels_last")
    assert_right(block, x, sources_of(block, torch.float32), plans.partial(plans._triton_stages, 0))


@pytest.mark.parametrize("layout", LAYOUTS[:2])
def test_every_depthwise_configuration_gives_the_same_bits(layout):
    channels = 40 if layout == "channels_last" else 2
    x = image((1, channels, 5, 9), torch.float32, layout)
    weight, scale, bias = torch.randn(3, 3, channels), torch.rand(channels) + 0.5, torch.randn(channels)
    geometry = Geometry((3, 3), (1, 1), (1, 1), 1, 1, 5, 9)
    results = [
        depthwise.depthwise(x, weight, scale, bias, geometry, "relu6", config)
        for config in range(len(depthwise.CONFIGS_NHWC))
    ]
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [(16, 32), (20, 7), (3, 70)], ids=str)
@pytest.mark.parametrize("activation", ["none", "relu6"])
@pytest.mark.parametrize("size", SIZES[:2], ids=str)
def test_pointwise(dtype, channels, activation, size):
    block = BlockSpec(expand=ConvSpec(*channels, activation=activation, eps=1e-5, sources=BN))
    x = image((2, channels[0], *size), dtype, "channels_last")
    assert_right(block, x, sources_of(block, dtype), plans.partial(plans._triton_stages, 0))


def test_errors_name_the_argument():
    weight, vector = torch.randn(3, 3, 4), torch.randn(4)
    geometry = Geometry((3, 3), (1, 1), (1, 1), 1, 1, 4, 4)
    with pytest.raises(TypeError, match=r"x is torch.float64; allowed"):
        depthwise.depthwise(torch.randn(1, 4, 4, 4).double(), weight, vector, vector, geometry)
    with pytest.raises(ValueError, match=r"x has shape \(4, 4, 4\)"):
        depthwise.depthwise(torch.randn(4, 4, 4), weight, vector, vector, geometry)
    with pytest.raises(ValueError, match="activation is 'gelu'; allowed: none, relu, relu6"):
        depthwise.depthwise(torch.randn(1, 4, 4, 4), weight, vector, vector, geometry, "gelu")
