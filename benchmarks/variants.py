"""Our MobileNetV2 at other widths, for ``--model variants:v2_0.35``: any ``v2_ALPHA`` is a factory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from mobilenet_ext.loading import randomise
from mobilenet_ext.models import MobileNetV2


def __getattr__(name: str) -> Callable[[], nn.Module]:
    prefix, _, alpha = name.partition("_")
    try:
        width = float(alpha)
    except ValueError:
        width = 0.0
    if prefix != "v2" or not width > 0:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def build() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = MobileNetV2(alpha=width)
            randomise(model, torch.randn(2, 3, 224, 224))
        return model

    return build
