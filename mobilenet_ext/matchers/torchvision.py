"""Matches torchvision's blocks and networks; Conv2dNormActivation is a Sequential and needs nothing here."""

from __future__ import annotations

from typing import Any

from mobilenet_ext.matchers.chains import finish, pooled
from mobilenet_ext.matchers.common import Match, Piece, Recurse, is_a, optional_class, read_identity
from mobilenet_ext.matchers.sequence import read_all, read_block, read_classifier, read_fused_block

# module, class, attribute with the layers, attribute that says whether there is a shortcut, how to read the layers
_BLOCKS = (
    ("torchvision.models.mobilenetv2", "InvertedResidual", "conv", "use_res_connect", read_block),
    ("torchvision.models.mobilenetv3", "InvertedResidual", "block", "use_res_connect", read_block),
    ("torchvision.models.mnasnet", "_InvertedResidual", "layers", "apply_residual", read_block),
    ("torchvision.models.efficientnet", "MBConv", "block", "use_res_connect", read_block),
    ("torchvision.models.efficientnet", "FusedMBConv", "block", "use_res_connect", read_fused_block),
)
# module, class, attribute with the layers, methods that must be the library's; forward pools and calls ``classifier``
_MODELS = (
    ("torchvision.models.mobilenetv2", "MobileNetV2", "features", ("forward", "_forward_impl")),
    ("torchvision.models.mobilenetv3", "MobileNetV3", "features", ("forward", "_forward_impl")),
    ("torchvision.models.mnasnet", "MNASNet", "layers", ("forward",)),
    ("torchvision.models.efficientnet", "EfficientNet", "features", ("forward", "_forward_impl")),
)


def _drop(module: Any) -> Piece:
    """The stochastic depth in front of EfficientNet's shortcut."""
    if not hasattr(module, "stochastic_depth"):
        return Piece()
    kind = optional_class("torchvision.ops.stochastic_depth", "StochasticDepth")
    return read_identity(module.stochastic_depth, "stochastic_depth", (kind,))


def match(module: Any, recurse: Recurse) -> Match | None:
    for where, name, layers, shortcut, read in _BLOCKS:
        if is_a(module, optional_class(where, name)):
            residual = bool(getattr(module, shortcut))
            return finish(module, read(getattr(module, layers), layers, recurse, residual) + _drop(module), "block")
    for where, name, layers, methods in _MODELS:
        if is_a(module, optional_class(where, name), methods):
            piece = pooled(read_all(getattr(module, layers), layers, recurse))
            return finish(module, piece + read_classifier(module.classifier, "classifier"), "model")
    return None
