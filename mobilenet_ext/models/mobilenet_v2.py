"""MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381, table 2), in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mobilenet_ext.models.blocks import (
    ConvBNReLU,
    InvertedResidual,
    _make_divisible,
    check_multiplier,
    check_positive_integer,
    initialise,
)

# Expand ratio t, output channels c, number of blocks n, stride s of the first of them.
SETTINGS = [
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
]


class MobileNetV2(nn.Module):
    """Images (N, 3, H, W) -> class scores (N, num_classes).

    ``alpha`` scales every channel count, rounded to a multiple of ``round_nearest``.  The keys of ``state_dict()`` are
    those of torchvision's mobilenet_v2, and for alpha >= 1 the shapes too (below 1 torchvision keeps 1280 channels
    before the classifier, where this model scales them).
    ValueError for ``alpha`` that is not above 0, or ``num_classes`` or ``round_nearest`` below 1.
    """

    def __init__(self, num_classes: int = 1000, alpha: float = 1.0, round_nearest: int = 8) -> None:
        super().__init__()
        check_positive_integer("num_classes", num_classes)
        check_multiplier("alpha", alpha)
        check_positive_integer("round_nearest", round_nearest)
        channels = _make_divisible(32 * alpha, round_nearest)
        last_channel = _make_divisible(1280 * alpha, round_nearest)
        layers: list[nn.Module] = [ConvBNReLU(3, channels, stride=2)]
        for t, c, n, s in SETTINGS:
            out_channel = _make_divisible(c * alpha, round_nearest)
            for i in range(n):
                layers.append(InvertedResidual(channels, out_channel, s if i == 0 else 1, expand_ratio=t))
                channels = out_channel
        layers.append(ConvBNReLU(channels, last_channel, kernel_size=1))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last_channel, num_classes))
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        x = torch.flatten(self.avgpool(x), 1)
        return self.classifier(x)
