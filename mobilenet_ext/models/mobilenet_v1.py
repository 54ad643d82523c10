"""MobileNetV1 (Howard et al. 2017, arXiv 1704.04861, table 1), in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mobilenet_ext.models.blocks import (
    ConvBNReLU,
    DepthwiseSeparable,
    _make_divisible,
    check_multiplier,
    check_positive_integer,
    initialise,
)

# Output channels and stride of each depthwise-separable block.  The paper's table prints stride 2 for the last one,
# but its output is 7x7 as its input, so stride 1 is meant.
SETTINGS = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]


class MobileNetV1(nn.Module):
    """Images (N, 3, H, W) -> class scores (N, num_classes).

    ``alpha``, the paper's width multiplier, scales every channel count, rounded to a multiple of 8 as in MobileNetV2;
    at the paper's 1, 0.75, 0.5 and 0.25 every product is one already, so that rounding changes nothing there.
    ``beta``, the paper's resolution multiplier rho, only sets ``input_size``, the side in pixels of the images the
    model is meant for: any size runs.  The activation is ReLU6, as in the authors' release; the paper writes ReLU.
    ValueError for ``alpha`` or ``beta`` that is not above 0, an ``input_size`` of 0, or ``num_classes`` below 1.
    """

    def __init__(self, num_classes: int = 1000, alpha: float = 1.0, beta: float = 1.0) -> None:
        super().__init__()
        check_positive_integer("num_classes", num_classes)
        check_multiplier("alpha", alpha)
        check_multiplier("beta", beta)
        self.input_size = round(224 * beta)
        if self.input_size < 1:
            raise ValueError(f"beta is {beta!r}; allowed: values whose input size, round(224 * beta), is at least 1")
        channels = _make_divisible(32 * alpha)
        layers: list[nn.Module] = [ConvBNReLU(3, channels, stride=2)]
        for width, stride in SETTINGS:
            out_channel = _make_divisible(width * alpha)
            layers.append(DepthwiseSeparable(channels, out_channel, stride))
            channels = out_channel
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        x = torch.flatten(self.avgpool(x), 1)
        return self.classifier(x)
