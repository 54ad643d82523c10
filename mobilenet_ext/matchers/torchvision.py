"""Matches torchvision's blocks and MobileNetV2; Conv2dNormActivation is a Sequential and needs nothing here."""

from __future__ import annotations

from typing import Any

from mobilenet_ext.matchers.chains import finish, pooled
from mobilenet_ext.matchers.common import Match, Recurse, is_a, optional_class
from mobilenet_ext.matchers.sequence import read_all, read_block, read_classifier

# module, class, attribute with the layers, attribute that says whether there is a shortcut
_BLOCKS = (
    ("torchvision.models.mobilenetv2", "InvertedResidual", "conv", "use_res_connect"),
    ("torchvision.models.mobilenetv3", "InvertedResidual", "block", "use_res_connect"),
    ("torchvision.models.mnasnet", "_InvertedResidual", "layers", "apply_residual"),
)
# module, class, attribute with the layers, methods that must be the library's; forward pools and calls ``classifier``
_MODELS = (
    ("torchvision.models.mobilenetv2", "MobileNetV2", "features", ("forward", "_forward_impl")),
    ("torchvision.models.mnasnet", "MNASNet", "layers", ("forward",)),
)


def match(module: Any, recurse: Recurse) -> Match | None:
    for where, name, layers, shortcut in _BLOCKS:
        if is_a(module, optional_class(where, name)):
            residual = bool(getattr(module, shortcut))
            return finish(module, read_block(getattr(module, layers), layers, recurse, residual), "block")
    for where, name, layers, methods in _MODELS:
        if is_a(module, optional_class(where, name), methods):
            piece = pooled(read_all(getattr(module, layers), layers, recurse))
            return finish(module, piece + read_classifier(module.classifier, "classifier"), "model")
    return None
