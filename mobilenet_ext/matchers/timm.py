"""Matches timm's EfficientNet family: MobileNetV1 and V2, EfficientNet-Lite, and the blocks they are made of.

timm keeps a convolution and its BatchNorm (which holds the activation) as siblings, so every stage names both.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from mobilenet_ext.matchers.chains import as_block, finish, pooled, with_shortcut
from mobilenet_ext.matchers.common import (
    BATCH_NORMS,
    Match,
    Piece,
    Recurse,
    RefusedError,
    activation_name,
    is_a,
    optional_class,
    read_identity,
    read_linear,
    read_stage,
    require,
)
from mobilenet_ext.matchers.sequence import read_all

_BLOCKS = "timm.models._efficientnet_blocks"
_MODEL_METHODS = ("forward", "forward_features", "forward_head")
_UNSUPPORTED = ("EdgeResidual", "UniversalInvertedResidual", "CondConvResidual", "MobileAttention")


def _stage(module: Any, conv: str, norm: str, depthwise: bool | None = None) -> Piece:
    """The sibling submodules ``conv`` and ``norm`` as one stage."""
    with_activation = tuple(optional_class("timm.layers", name) for name in ("BatchNormAct2d", "SyncBatchNormAct"))
    norm_module, activation = getattr(module, norm), "none"
    if type(norm_module) in with_activation:
        if type(norm_module.drop) is not nn.Identity:
            raise RefusedError(f"{norm}.drop is a {type(norm_module.drop).__name__}; allowed: Identity")
        activation = activation_name(norm_module.act, f"{norm}.act")
    return read_stage(
        getattr(module, conv),
        conv,
        norm_module,
        norm,
        activation,
        depthwise=depthwise,
        same_class=optional_class("timm.layers", "Conv2dSame"),
        norm_classes=(*BATCH_NORMS, *with_activation),
    )


def _refuse_extras(module: Any) -> None:
    """Refuse the optional parts of a block that no stage of a spec describes."""
    parts = {"conv_s2d": "space-to-depth", "se": "squeeze-and-excitation", "aa": "an anti-aliasing layer"}
    for name, what in parts.items():
        part = getattr(module, name, None)
        if part is not None and type(part) is not nn.Identity:
            raise RefusedError(f"{name} is a {type(part).__name__}: {what} is not supported")


def _with_skip(module: Any, piece: Piece) -> Piece:
    """Adds the drop path in front of the shortcut."""
    return piece + read_identity(module.drop_path, "drop_path", (optional_class("timm.layers", "DropPath"),))


def _match_block(module: Any) -> Match | None:
    if is_a(module, optional_class("timm.layers", "ConvNormAct")):
        _refuse_extras(module)
        return finish(module, _stage(module, "conv", "bn"), "block")
    if is_a(module, optional_class(_BLOCKS, "ConvBnAct")):
        _refuse_extras(module)
        piece = _stage(module, "conv", "bn1")
        if module.has_skip:
            piece = _with_skip(module, with_shortcut(piece))
        return finish(module, piece, "block")
    if is_a(module, optional_class(_BLOCKS, "DepthwiseSeparableConv")):
        _refuse_extras(module)
        piece = _stage(module, "conv_dw", "bn1", True) + _stage(module, "conv_pw", "bn2", False)
    elif is_a(module, optional_class(_BLOCKS, "InvertedResidual")):
        _refuse_extras(module)
        piece = _stage(module, "conv_pw", "bn1", False) + _stage(module, "conv_dw", "bn2", True)
        piece += _stage(module, "conv_pwl", "bn3", False)
    else:
        return None
    piece = as_block(piece, bool(module.has_skip))
    return finish(module, _with_skip(module, piece) if module.has_skip else piece, "block")


def _is_flat_mean(pool: Any) -> bool:
    """Whether a SelectAdaptivePool2d turns (N, C, H, W) into the means (N, C)."""
    if type(pool.pool) is nn.AdaptiveAvgPool2d:
        return pool.pool.output_size in (1, (1, 1)) and type(pool.flatten) is nn.Flatten and pool.flatten.start_dim == 1
    fast: Any = optional_class("timm.layers.adaptive_avgmax_pool", "FastAdaptiveAvgPool")
    return type(pool.pool) is fast and bool(pool.pool.flatten) and tuple(pool.pool.dim) == (2, 3)


def _match_model(module: Any, recurse: Recurse) -> Match | None:
    if not is_a(module, optional_class("timm.models.efficientnet", "EfficientNet"), _MODEL_METHODS):
        return None
    piece = _stage(module, "conv_stem", "bn1", False) + read_all(module.blocks, "blocks", recurse)
    if type(module.conv_head) is nn.Identity and type(module.bn2) is nn.Identity:
        pass  # mobilenetv1 has no head convolution
    else:
        piece += _stage(module, "conv_head", "bn2", False)
    pool = module.global_pool
    require(pool, "global_pool", (optional_class("timm.layers", "SelectAdaptivePool2d"),), "SelectAdaptivePool2d")
    headless = type(module.classifier) is nn.Identity
    if _is_flat_mean(pool):
        piece = pooled(piece)
    elif pool.pool_type or not headless:
        raise RefusedError(f"global_pool is {pool!r}; allowed: the flattened average")
    piece += Piece(identities=("",))  # forward_head calls dropout with the model's own mode and rate
    if not headless:
        piece += read_linear(module.classifier, "classifier")
    return finish(module, piece, "model")


def match(module: Any, recurse: Recurse) -> Match | None:
    for name in _UNSUPPORTED:
        kind = optional_class(_BLOCKS, name)
        if kind is not None and isinstance(module, kind):
            raise RefusedError(f"{name} is not supported")
    return _match_block(module) or _match_model(module, recurse)
