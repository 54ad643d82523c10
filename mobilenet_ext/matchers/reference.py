"""Matches this package's own models; ConvBNReLU and DepthwiseSeparable are Sequentials and need nothing here."""

from __future__ import annotations

from typing import Any

from torch import nn

from mobilenet_ext.matchers.chains import finish, pooled
from mobilenet_ext.matchers.common import Match, Recurse, RefusedError, is_a, optional_class, require
from mobilenet_ext.matchers.sequence import read_all, read_block, read_classifier

_MODELS = "mobilenet_ext.models"


def match(module: Any, recurse: Recurse) -> Match | None:
    if is_a(module, optional_class(_MODELS, "InvertedResidual")):
        return finish(module, read_block(module.conv, "conv", recurse, bool(module.use_shortcut)), "block")
    for name in ("MobileNetV1", "MobileNetV2"):
        if is_a(module, optional_class(_MODELS, name)):
            piece = read_all(module.features, "features", recurse)
            require(module.avgpool, "avgpool", (nn.AdaptiveAvgPool2d,), "AdaptiveAvgPool2d")
            if module.avgpool.output_size not in (1, (1, 1)):
                raise RefusedError(f"avgpool has output_size {module.avgpool.output_size}; allowed: 1")
            return finish(module, pooled(piece) + read_classifier(module.classifier, "classifier"), "model")
    return None
