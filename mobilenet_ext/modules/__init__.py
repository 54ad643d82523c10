"""The fused modules: what ``fuse`` makes of other people's modules, and the ones to build directly."""

from mobilenet_ext.modules.constructors import (
    ConvBNAct,
    FusedConvBNAct,
    FusedDepthwiseSeparable,
    FusedInvertedResidual,
    FusedSequential,
)
from mobilenet_ext.modules.mixin import FusedModule

__all__ = [
    "ConvBNAct",
    "FusedConvBNAct",
    "FusedDepthwiseSeparable",
    "FusedInvertedResidual",
    "FusedModule",
    "FusedSequential",
]
