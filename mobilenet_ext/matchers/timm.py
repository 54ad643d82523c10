"""Matches timm's EfficientNet and MobileNetV3 families, LCNet and MobileNetV4 among them, and their blocks.

timm keeps a convolution and its BatchNorm (which holds the activation) as siblings, so every stage names both.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from mobilenet_ext.matchers.chains import as_block, finish, in_blocks, merge_stem, pooled, with_shortcut
from mobilenet_ext.matchers.common import (
    BATCH_NORMS,
    Activation,
    Match,
    Piece,
    Recurse,
    RefusedError,
    as_linear,
    is_a,
    optional_class,
    read_activation,
    read_identity,
    read_linear,
    read_stage,
    require,
)
from mobilenet_ext.matchers.sequence import read_all, read_optional_squeeze

_BLOCKS = "timm.models._efficientnet_blocks"
_MODEL_METHODS = ("forward", "forward_features", "forward_head")
_UNSUPPORTED = ("CondConvResidual", "MobileAttention")


def _stage(module: Any, conv: str, norm: str, depthwise: bool | None = None) -> Piece:
    """The sibling submodules ``conv`` and ``norm`` as one stage."""
    with_activation = tuple(optional_class("timm.layers", name) for name in ("BatchNormAct2d", "SyncBatchNormAct"))
    norm_module, activation = getattr(module, norm), Activation()
    if type(norm_module) in with_activation:
        if type(norm_module.drop) is not nn.Identity:
            raise RefusedError(f"{norm}.drop is a {type(norm_module.drop).__name__}; allowed: Identity")
        activation = read_activation(norm_module.act, f"{norm}.act")
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
    parts = {"conv_s2d": "space-to-depth", "aa": "an anti-aliasing layer"}
    for name, what in parts.items():
        part = getattr(module, name, None)
        if part is not None and type(part) is not nn.Identity:
            raise RefusedError(f"{name} is a {type(part).__name__}: {what} is not supported")


def _with_skip(module: Any, piece: Piece) -> Piece:
    """Adds the drop path in front of the shortcut."""
    return piece + read_identity(module.drop_path, "drop_path", (optional_class("timm.layers", "DropPath"),))


def _squeeze(module: Any) -> Piece:
    return read_optional_squeeze(module.se, "se")


def _universal(module: Any) -> Piece:
    """MobileNetV4's universal inverted residual (arXiv 2404.10518): depthwise stages are optional at three places."""
    if type(module.layer_scale) is not nn.Identity:
        raise RefusedError(f"layer_scale is a {type(module.layer_scale).__name__}; allowed: Identity")
    parts = []
    for name in ("dw_start", "pw_exp", "dw_mid", "pw_proj", "dw_end"):
        part = getattr(module, name)
        if type(part) is nn.Identity:
            continue
        if not is_a(part, optional_class("timm.layers", "ConvNormAct")):
            raise RefusedError(f"{name} is a {type(part).__name__}; allowed: ConvNormAct")
        _refuse_extras(part)
        if name == "pw_proj":
            parts.append(_squeeze(module))
        parts.append(_stage(part, "conv", "bn").under(name))
    start = Piece()
    if type(module.dw_start) is not nn.Identity and type(module.dw_mid) is not nn.Identity:
        start = parts.pop(0)  # a block of its own: the next three stages are one
    piece = sum(parts, Piece())
    piece = start + replace(piece, items=merge_stem(piece.items))
    return with_shortcut(piece) if module.has_skip else piece


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
        piece = _stage(module, "conv_dw", "bn1", True) + _squeeze(module) + _stage(module, "conv_pw", "bn2", False)
    elif is_a(module, optional_class(_BLOCKS, "InvertedResidual")):
        _refuse_extras(module)
        piece = _stage(module, "conv_pw", "bn1", False) + _stage(module, "conv_dw", "bn2", True)
        piece += _squeeze(module) + _stage(module, "conv_pwl", "bn3", False)
    elif is_a(module, optional_class(_BLOCKS, "UniversalInvertedResidual")):
        piece = _universal(module)
        return finish(module, _with_skip(module, piece) if module.has_skip else piece, "block")
    elif is_a(module, optional_class(_BLOCKS, "EdgeResidual")):
        _refuse_extras(module)
        if type(module.se) is not nn.Identity:
            raise RefusedError("se follows a dense convolution; allowed: a depthwise one")
        piece = _stage(module, "conv_exp", "bn1", False) + _stage(module, "conv_pwl", "bn2", False)
        piece = in_blocks(piece, bool(module.has_skip))
        return finish(module, _with_skip(module, piece) if module.has_skip else piece, "block")
    else:
        return None
    piece = as_block(piece, bool(module.has_skip))
    return finish(module, _with_skip(module, piece) if module.has_skip else piece, "block")


def _is_mean(pool: Any, flat: bool) -> bool:
    """Whether a SelectAdaptivePool2d makes the means of (N, C, H, W), as (N, C) or, unless ``flat``, (N, C, 1, 1)."""
    if type(pool.pool) is nn.AdaptiveAvgPool2d:
        one = pool.pool.output_size in (1, (1, 1))
        flattens = type(pool.flatten) is nn.Flatten and pool.flatten.start_dim == 1
        return one and (flattens if flat else flattens or type(pool.flatten) is nn.Identity)
    fast: Any = optional_class("timm.layers.adaptive_avgmax_pool", "FastAdaptiveAvgPool")
    return type(pool.pool) is fast and tuple(pool.pool.dim) == (2, 3) and (bool(pool.pool.flatten) or not flat)


def _match_model(module: Any, recurse: Recurse) -> Match | None:
    if is_a(module, optional_class("timm.models.mobilenetv3", "MobileNetV3"), _MODEL_METHODS):
        return _match_late_head(module, recurse)
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
    if _is_mean(pool, flat=True):
        piece = pooled(piece)
    elif pool.pool_type or not headless:
        raise RefusedError(f"global_pool is {pool!r}; allowed: the flattened average")
    piece += Piece(identities=("",))  # forward_head calls dropout with the model's own mode and rate
    if not headless:
        piece += read_linear(module.classifier, "classifier")
    return finish(module, piece, "model")


def _match_late_head(module: Any, recurse: Recurse) -> Match:
    """MobileNetV3's order: the head convolution comes after the pooling."""
    piece = _stage(module, "conv_stem", "bn1", False) + read_all(module.blocks, "blocks", recurse)
    pool = module.global_pool
    require(pool, "global_pool", (optional_class("timm.layers", "SelectAdaptivePool2d"),), "SelectAdaptivePool2d")
    if not _is_mean(pool, flat=False) or type(module.flatten) is not nn.Flatten:
        raise RefusedError(f"global_pool is {pool!r}; allowed: the average, flattened after the head")
    if type(module.conv_head) is nn.Identity:
        raise RefusedError("conv_head is an Identity; allowed: a 1x1 convolution")
    if type(module.norm_head) is nn.Identity:
        activation = read_activation(module.act2, "act2")
        head = read_stage(module.conv_head, "conv_head", activation=activation, depthwise=False)
    else:
        require(module.act2, "act2", (nn.Identity,), "Identity")
        head = _stage(module, "conv_head", "norm_head", False)
    piece = pooled(piece) + as_linear(head) + Piece(identities=("",))
    if type(module.classifier) is not nn.Identity:
        piece += read_linear(module.classifier, "classifier")
    return finish(module, piece, "model")


def match(module: Any, recurse: Recurse) -> Match | None:
    for name in _UNSUPPORTED:
        kind = optional_class(_BLOCKS, name)
        if kind is not None and isinstance(module, kind):
            raise RefusedError(f"{name} is not supported")
    return _match_block(module) or _match_model(module, recurse)
