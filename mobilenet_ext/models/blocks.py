"""The blocks that MobileNetV1 and V2 are made of, in plain PyTorch."""

from __future__ import annotations

import math
from collections import OrderedDict

from torch import Tensor, nn


def _make_divisible(channels: float, divisor: int = 8) -> int:
    """The multiple of ``divisor`` nearest to ``channels``, at least ``divisor``, never more than 10 % below it."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * channels else rounded + divisor


class ConvBNReLU(nn.Sequential):
    """Conv2d without bias, BatchNorm2d, ReLU6.

    (N, in_channel, H, W) -> (N, out_channel, ceil(H/stride), ceil(W/stride)).
    The sizes hold for an odd ``kernel_size``; the padding is (kernel_size - 1) // 2.
    """

    def __init__(
        self, in_channel: int, out_channel: int, kernel_size: int = 3, stride: int = 1, groups: int = 1
    ) -> None:
        padding = (kernel_size - 1) // 2
        super().__init__(
            nn.Conv2d(in_channel, out_channel, kernel_size, stride, padding, groups=groups, bias=False),
            nn.BatchNorm2d(out_channel),
            nn.ReLU6(inplace=True),
        )


class InvertedResidual(nn.Module):
    """MobileNetV2's block: expand 1x1, depthwise 3x3, project 1x1 without activation, and a shortcut where it fits.

    (N, in_channel, H, W) -> (N, out_channel, ceil(H/stride), ceil(W/stride)), hidden width in_channel * expand_ratio.
    There is no expand convolution at ratio 1; the shortcut exists at stride 1 with in_channel == out_channel.
    ValueError for a stride other than 1 and 2, or for channels or a ratio below 1.
    """

    def __init__(self, in_channel: int, out_channel: int, stride: int, expand_ratio: int) -> None:
        super().__init__()
        _check_block(in_channel, out_channel, stride)
        check_positive_integer("expand_ratio", expand_ratio)
        hidden = in_channel * expand_ratio
        self.use_shortcut = stride == 1 and in_channel == out_channel
        expand = [] if expand_ratio == 1 else [ConvBNReLU(in_channel, hidden, kernel_size=1)]
        self.conv = nn.Sequential(
            *expand,
            ConvBNReLU(hidden, hidden, stride=stride, groups=hidden),
            nn.Conv2d(hidden, out_channel, kernel_size=1, bias=False),
            nn.BatchNorm2d(out_channel),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.use_shortcut else self.conv(x)


class DepthwiseSeparable(nn.Sequential):
    """MobileNetV1's block: depthwise 3x3, then pointwise 1x1, each with BatchNorm and ReLU6.

    (N, in_channel, H, W) -> (N, out_channel, ceil(H/stride), ceil(W/stride)).
    ValueError for a stride other than 1 and 2, or for channels below 1.
    """

    def __init__(self, in_channel: int, out_channel: int, stride: int = 1) -> None:
        _check_block(in_channel, out_channel, stride)
        depthwise = ConvBNReLU(in_channel, in_channel, stride=stride, groups=in_channel)
        pointwise = ConvBNReLU(in_channel, out_channel, kernel_size=1)
        super().__init__(OrderedDict(depthwise=depthwise, pointwise=pointwise))


def initialise(model: nn.Module) -> None:
    """Fresh weights, in place: He-normal (fan out) convolutions, BatchNorm as identity, N(0, 0.01) linear layers."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)
            nn.init.zeros_(module.bias)


def check_positive_integer(name: str, value: int) -> None:
    """ValueError unless the argument ``name`` is an integer from 1 up."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} is {value!r}; allowed: an integer of at least 1")


def check_multiplier(name: str, value: float) -> None:
    """ValueError unless the argument ``name`` is a finite number above 0."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < math.inf:
        raise ValueError(f"{name} is {value!r}; allowed: a finite number above 0")


def _check_block(in_channel: int, out_channel: int, stride: int) -> None:
    check_positive_integer("in_channel", in_channel)
    check_positive_integer("out_channel", out_channel)
    if stride not in (1, 2):
        raise ValueError(f"stride is {stride!r}; allowed: 1 or 2")
