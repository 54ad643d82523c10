"""The plain reference models: the definition of right that every fused path is compared with."""

from mobilenet_ext.models.blocks import ConvBNReLU, DepthwiseSeparable, InvertedResidual
from mobilenet_ext.models.mobilenet_v1 import MobileNetV1
from mobilenet_ext.models.mobilenet_v2 import MobileNetV2

__all__ = ["ConvBNReLU", "DepthwiseSeparable", "InvertedResidual", "MobileNetV1", "MobileNetV2"]
