"""Fused MobileNet blocks for PyTorch: whole inverted residuals in one kernel.

``fuse(model)`` swaps every supported block of a model for its fused form and leaves the rest alone; ``state_dict`` keys
do not change.  See the README for the ten-line start.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public name -> module; loaded on first use, so that `import mobilenet_ext` stays light.
_EXPORTS = {
    "fuse": "fusion",
    "unfuse": "fusion",
    "refresh": "fusion",
    "freeze": "fusion",
    "disabled": "fusion",
    "fusion_report": "report",
    "verify": "verification",
    "FusedInvertedResidual": "modules",
    "FusedDepthwiseSeparable": "modules",
    "FusedConvBNAct": "modules",
    "FusedSequential": "modules",
}
_SUBMODULES = ("models", "ops")

__all__ = [
    "FusedConvBNAct",
    "FusedDepthwiseSeparable",
    "FusedInvertedResidual",
    "FusedSequential",
    "__version__",
    "disabled",
    "freeze",
    "fuse",
    "fusion_report",
    "models",
    "ops",
    "refresh",
    "unfuse",
    "verify",
]

import_module("mobilenet_ext.ops")  # registers the operators: exported programs need them on import


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        value = getattr(import_module(f"mobilenet_ext.{_EXPORTS[name]}"), name)
    elif name in _SUBMODULES:
        value = import_module(f"mobilenet_ext.{name}")
    else:
        raise AttributeError(f"module 'mobilenet_ext' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS, *_SUBMODULES])


if TYPE_CHECKING:
    from mobilenet_ext import models, ops
    from mobilenet_ext.fusion import disabled, freeze, fuse, refresh, unfuse
    from mobilenet_ext.modules import FusedConvBNAct, FusedDepthwiseSeparable, FusedInvertedResidual, FusedSequential
    from mobilenet_ext.report import fusion_report
    from mobilenet_ext.verification import verify
