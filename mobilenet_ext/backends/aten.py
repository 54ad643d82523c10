"""A chain run with plain PyTorch operators: slow, differentiable, on any device, and the definition of right.

Every other backend is compared with :func:`run_chain` in float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mobilenet_ext.spec import SQUEEZE_ROLES, BlockSpec, ChainItem, ConvSpec, LinearSpec, PoolSpec

name = "aten"
description = "plain PyTorch operators"

_ACTIVATIONS = {
    "none": lambda x: x,
    "relu": F.relu,
    "relu6": F.relu6,
    "hardswish": F.hardswish,
    "silu": F.silu,
    "hardsigmoid": F.hardsigmoid,
    "sigmoid": torch.sigmoid,
}


def unsupported(spec: ChainItem, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why plain PyTorch operators cannot run ``spec``, or None."""
    if not dtype.is_floating_point:
        return f"the dtype is {dtype}; convolutions need a floating-point dtype"
    return None


def split(chain: Sequence[ChainItem], sources: Sequence[Tensor]) -> Iterator[tuple[ChainItem, list[dict[str, Tensor]]]]:
    """Each item of the chain with its tensors by name, one dict per stage (one dict for a linear item).

    ValueError if the number of sources is not what the chain needs.
    """
    stages = [[spec.sources for _, spec in item.stages()] for item in chain]
    expected = sum(len(names) for item in stages for names in item)
    if expected != len(sources):
        raise ValueError(f"sources has {len(sources)} tensors; this chain needs {expected}")
    remaining = iter(sources)
    for item, item_names in zip(chain, stages, strict=True):
        yield item, [{source: next(remaining) for source in names} for names in item_names]


def paddings(spec: ConvSpec, height: int, width: int) -> tuple[int, int, int, int]:
    """Padding (top, bottom, left, right) in pixels of ``spec`` on an input of this size; resolves ``"same"``."""
    if not isinstance(spec.padding, str):
        return spec.padding
    pads: list[int] = []
    for size, kernel, stride, dilation in zip((height, width), spec.kernel, spec.stride, spec.dilation, strict=True):
        total = max((-(-size // stride) - 1) * stride + dilation * (kernel - 1) + 1 - size, 0)
        pads += [total // 2, total - total // 2]
    return pads[0], pads[1], pads[2], pads[3]


def convolve(spec: ConvSpec, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The bare convolution of ``spec`` (no BatchNorm, no activation) on ``x`` of shape (N, C, H, W)."""
    top, bottom, left, right = paddings(spec, x.shape[2], x.shape[3])
    symmetric = top == bottom and left == right
    if not symmetric:
        x = F.pad(x, (left, right, top, bottom))
    groups = spec.in_channels if spec.depthwise else 1
    return F.conv2d(x, weight, bias, spec.stride, (top, left) if symmetric else 0, spec.dilation, groups)


def activate(spec: ConvSpec | LinearSpec, x: Tensor) -> Tensor:
    """The activation of ``spec`` on ``x``; propagates NaN as PyTorch does."""
    if spec.activation == "leaky_relu":
        return F.leaky_relu(x, spec.slope)
    return _ACTIVATIONS[spec.activation](x)


def run_stage(spec: ConvSpec, x: Tensor, tensors: Mapping[str, Tensor], training: bool = False) -> Tensor:
    """Convolution, BatchNorm and activation of one stage, exactly as the separate PyTorch modules compute them."""
    x = convolve(spec, x, tensors["weight"], tensors.get("conv_bias"))
    if spec.has_bn:
        mean, var = (None, None) if training else (tensors["running_mean"], tensors["running_var"])
        x = F.batch_norm(x, mean, var, tensors.get("bn_weight"), tensors.get("bn_bias"), training, 0.0, spec.eps)
    return activate(spec, x)


def run_linear(spec: LinearSpec, x: Tensor, tensors: Mapping[str, Tensor], training: bool = False) -> Tensor:
    """A fully connected layer with its BatchNorm and activation on ``x`` (N, in_features)."""
    x = F.linear(x, tensors["weight"].flatten(1), tensors.get("conv_bias"))
    if "running_mean" in tensors:
        mean, var = (None, None) if training else (tensors["running_mean"], tensors["running_var"])
        x = F.batch_norm(x, mean, var, tensors.get("bn_weight"), tensors.get("bn_bias"), training, 0.0, spec.eps)
    return activate(spec, x)


def run_block(
    block: BlockSpec,
    x: Tensor,
    stages: Sequence[Mapping[str, Tensor]],
    training: bool = False,
    shortcut: Tensor | None = None,
) -> Tensor:
    """One block on ``x`` (N, C, H, W); the result is (N, C', H', W'), or (N, C') after a pool.

    ``shortcut`` is the input of the item before, for a block with ``residual_back``.
    """
    y = x
    scale = x
    for (role, spec), tensors in zip(block.stages(), stages, strict=True):
        if role in SQUEEZE_ROLES:
            scale = run_stage(spec, y.mean((2, 3), keepdim=True) if role == "reduce" else scale, tensors, training)
            y = y * scale if role == "excite" else y
        else:
            y = run_stage(spec, y, tensors, training)
    if block.residual or block.residual_back:
        y = (x if shortcut is None else shortcut) + y
    return y.mean((2, 3)) if block.pool else y


def run_chain(chain: Sequence[ChainItem], x: Tensor, sources: Sequence[Tensor], training: bool = False) -> Tensor:
    """Run a chain on ``x`` of shape (N, C, H, W), any floating-point dtype, device and memory format.

    ``sources`` are the chain's tensors in the order of :func:`mobilenet_ext.spec.source_names`, of the dtype and
    device of ``x``.  With ``training`` BatchNorm uses the statistics of the batch; the running statistics are only
    read, never updated.  Differentiable in ``x`` and every source.

    Returns (N, C', H', W'), or (N, features) once the chain has pooled.  ValueError on a wrong rank, channel count or
    number of sources.
    """
    if x.dim() != 4:
        raise ValueError(f"x has {x.dim()} dimensions, shape {tuple(x.shape)}; allowed: 4, (N, C, H, W)")
    before = x
    for item, stages in split(chain, sources):
        if isinstance(item, LinearSpec):
            x = run_linear(item, x, stages[0], training)
            continue
        if isinstance(item, PoolSpec):
            x = x.mean((2, 3))
            continue
        if x.shape[1] != item.in_channels:
            raise ValueError(f"x has {x.shape[1]} channels where the chain needs {item.in_channels}")
        entry = x
        x = run_block(item, x, stages, training, before if item.residual_back else entry)
        before = entry
    return x
