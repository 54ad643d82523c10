"""The backward of the differentiable chain operator: recompute with plain operators, BatchNorm frozen.

The forward saves only its input and the sources.  The backward runs the chain again stage by stage and applies the
explicit adjoints, so that it traces into compiled graphs like any PyTorch code.  BatchNorm uses its running statistics
(eval mode): y = (conv(x) - mean) * rstd * weight + bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .backends.aten import activate, paddings, split
from .freshness import bump_epoch
from .spec import BlockSpec, ConvSpec, LinearSpec, decode


@dataclass
class _Stage:
    """What the adjoint of one stage needs: padded input, the convolution's result, the value before activation."""

    spec: ConvSpec
    tensors: dict[str, Tensor]
    pads: tuple[int, int, int, int]
    x: Tensor
    conv: Tensor
    before: Tensor


def _forward_stage(spec: ConvSpec, tensors: dict[str, Tensor], x: Tensor) -> tuple[_Stage, Tensor]:
    pads = paddings(spec, x.shape[2], x.shape[3])
    top, bottom, left, right = pads
    padded = F.pad(x, (left, right, top, bottom)) if any(pads) else x
    groups = spec.in_channels if spec.depthwise else 1
    conv = F.conv2d(padded, tensors["weight"], tensors.get("conv_bias"), spec.stride, 0, spec.dilation, groups)
    before = conv
    if spec.has_bn:
        before = F.batch_norm(
            conv, tensors["running_mean"], tensors["running_var"], tensors.get("bn_weight"), tensors.get("bn_bias"),
            False, 0.0, spec.eps,
        )  # fmt: skip
    return _Stage(spec, tensors, pads, padded, conv, before), activate(spec, before)


def _backward_activation(spec: ConvSpec, grad: Tensor, before: Tensor) -> Tensor:
    """ReLU and ReLU6 pass the gradient strictly inside their linear range, as PyTorch's do: 0 at 0 and at 6."""
    if spec.activation == "relu":
        return grad * (before > 0)
    if spec.activation == "relu6":
        return grad * ((before > 0) & (before < 6))
    return grad


def _backward_stage(stage: _Stage, grad: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    spec, t = stage.spec, stage.tensors
    grads: dict[str, Tensor] = {}
    grad = _backward_activation(spec, grad, stage.before)
    if spec.has_bn:
        rstd = torch.rsqrt(t["running_var"] + spec.eps)
        if "bn_bias" in t:
            grads["bn_bias"] = grad.sum((0, 2, 3))
        if "bn_weight" in t:
            normalised = (stage.conv - t["running_mean"].view(1, -1, 1, 1)) * rstd.view(1, -1, 1, 1)
            grads["bn_weight"] = (grad * normalised).sum((0, 2, 3))
        scale = rstd * t["bn_weight"] if "bn_weight" in t else rstd
        grad = grad * scale.view(1, -1, 1, 1)
    if "conv_bias" in t:
        grads["conv_bias"] = grad.sum((0, 2, 3))
    groups = spec.in_channels if spec.depthwise else 1
    dx, dw, _ = torch.ops.aten.convolution_backward(
        grad, stage.x, t["weight"], None, spec.stride, (0, 0), spec.dilation, False, (0, 0), groups, (True, True, False)
    )
    grads["weight"] = dw
    top, bottom, left, right = stage.pads
    if any(stage.pads):
        dx = dx[:, :, top : dx.shape[2] - bottom, left : dx.shape[3] - right]
    return dx, grads


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, list[Tensor | None], None, None, None]:
    # The forward computed in fp32 whatever autocast says; so must what recomputes it.
    with torch.autocast(grad.device.type, enabled=False):
        return _backward_fp32(ctx, grad)


def _backward_fp32(ctx: Any, grad: Tensor) -> tuple[Tensor | None, list[Tensor | None], None, None, None]:
    bump_epoch()  # whoever called backward may now write to parameters in ways that leave no trace
    x, *sources = ctx.saved_tensors
    dtype = x.dtype
    if (wide := torch.promote_types(dtype, sources[0].dtype)) != dtype:  # autocast on a GPU: half image, fp32 weights
        x, grad = x.to(wide), grad.to(wide)
    program = decode(ctx.program, ctx.constants)
    items = list(split(program.chain, sources))
    inputs: list[Tensor] = []
    stages: list[list[_Stage]] = []
    for item, tensors in items:
        inputs.append(x)
        if isinstance(item, LinearSpec):
            stages.append([])
            break
        y, done = x, []
        for (_, spec), t in zip(item.stages(), tensors, strict=True):
            stage, y = _forward_stage(spec, t, y)
            done.append(stage)
        stages.append(done)
        x = y.mean((2, 3)) if item.pool else y + x if item.residual else y
    result: list[Tensor | None] = []
    for (item, tensors), before, done in zip(reversed(items), reversed(inputs), reversed(stages), strict=True):
        if isinstance(item, LinearSpec):
            named = {"weight": grad.t() @ before, "conv_bias": grad.sum(0)}
            result = [named[name] for name in item.sources]
            grad = grad @ tensors[0]["weight"]
            continue
        grad, ours = _backward_block(item, done, grad)
        result = ours + result
    return grad.to(dtype), result, None, None, None


def _backward_block(item: BlockSpec, stages: list[_Stage], grad: Tensor) -> tuple[Tensor, list[Tensor | None]]:
    if item.pool:
        last = stages[-1].before
        grad = (grad / (last.shape[2] * last.shape[3]))[:, :, None, None].expand_as(last)
    passed = grad
    result: list[Tensor | None] = []
    for stage in reversed(stages):
        grad, named = _backward_stage(stage, grad)
        result = [named.get(name) for name in stage.spec.sources] + result
    return (grad + passed if item.residual else grad), result


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, sources, _, ctx.program, ctx.constants = inputs
    ctx.save_for_backward(x, *sources)


def register() -> None:
    """Attach the backward to ``mobilenet_ext::chain_grad``."""
    torch.library.register_autograd("mobilenet_ext::chain_grad", _backward, setup_context=_setup_context)
