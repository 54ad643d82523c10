"""The backward of the differentiable chain operator: recompute with plain operators, BatchNorm frozen.

The forward saves only its input and the sources.  The backward runs the chain again stage by stage and applies the
explicit adjoints, so that it traces into compiled graphs like any PyTorch code.  BatchNorm uses its running statistics
(eval mode): y = (conv(x) - mean) * rstd * weight + bias.  On a GPU the adjoints of depthwise convolutions, and of
BatchNorm with its activation, are operators that choose among the kernels that are right and fast there
(``backends/gpu/gradient_ops.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .backends.aten import activate, paddings, split
from .freshness import bump_epoch
from .spec import CLAMPS, SQUEEZE_ROLES, BlockSpec, ChainItem, ConvSpec, LinearSpec, PoolSpec, decode


@dataclass
class _Stage:
    """What the adjoint of one stage needs: input, the convolution's result, the value before activation.

    ``pads`` is what the input was padded with, and ``padding`` what the convolution pads, alike on both sides.
    """

    spec: ConvSpec
    tensors: dict[str, Tensor]
    pads: tuple[int, int, int, int]
    padding: tuple[int, int]
    x: Tensor
    conv: Tensor
    before: Tensor


def _forward_stage(spec: ConvSpec, tensors: dict[str, Tensor], x: Tensor) -> tuple[_Stage, Tensor]:
    pads = paddings(spec, x.shape[2], x.shape[3])
    top, bottom, left, right = pads
    padding = (top, left) if top == bottom and left == right else (0, 0)
    if padding != (top, left) or padding != (bottom, right):
        x = F.pad(x, (left, right, top, bottom))
    else:
        pads = (0, 0, 0, 0)
    groups = spec.in_channels if spec.depthwise else 1
    conv = F.conv2d(x, tensors["weight"], tensors.get("conv_bias"), spec.stride, padding, spec.dilation, groups)
    before = conv
    if spec.has_bn:
        before = F.batch_norm(
            conv, tensors["running_mean"], tensors["running_var"], tensors.get("bn_weight"), tensors.get("bn_bias"),
            False, 0.0, spec.eps,
        )  # fmt: skip
    return _Stage(spec, tensors, pads, padding, x, conv, before), activate(spec, before)


def _backward_activation(spec: ConvSpec, grad: Tensor, before: Tensor) -> Tensor:
    """ReLU and ReLU6 pass the gradient strictly inside their linear range, as PyTorch's do: 0 at 0 and at 6."""
    aten = torch.ops.aten
    if spec.activation == "relu":
        return grad * (before > 0)
    if spec.activation == "relu6":
        return grad * ((before > 0) & (before < 6))
    if spec.activation == "leaky_relu":
        return aten.leaky_relu_backward(grad, before, spec.slope, False)
    if spec.activation == "sigmoid":
        return aten.sigmoid_backward(grad, torch.sigmoid(before))
    backwards = {
        "hardswish": aten.hardswish_backward,
        "silu": aten.silu_backward,
        "hardsigmoid": aten.hardsigmoid_backward,
    }
    return backwards[spec.activation](grad, before) if spec.activation in backwards else grad


def _has_kernels(grad: Tensor) -> bool:
    """Whether the gradients may go to the kernels of a GPU, which have first derivatives only."""
    return grad.is_cuda and not torch.is_grad_enabled()


def _backward_norm(stage: _Stage, grad: Tensor, grads: dict[str, Tensor]) -> Tensor:
    """Through activation and BatchNorm to the convolution's result; puts the vectors' gradients into ``grads``."""
    spec, t = stage.spec, stage.tensors
    if spec.has_bn and spec.activation in CLAMPS and _has_kernels(grad):
        mean, rstd = t["running_mean"], torch.rsqrt(t["running_var"] + spec.eps)
        weight = t["bn_weight"] if "bn_weight" in t else torch.ones_like(mean)
        bias = t["bn_bias"] if "bn_bias" in t else torch.zeros_like(mean)
        grad, dweight, dbias = torch.ops.mobilenet_ext_gpu.norm_backward(
            grad, stage.conv, stage.before, [mean, rstd, weight, bias], CLAMPS.index(spec.activation)
        )
        grads.update({name: d for name, d in (("bn_weight", dweight), ("bn_bias", dbias)) if name in t})
        return grad
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
    return grad


def _backward_stage(stage: _Stage, grad: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    spec, t = stage.spec, stage.tensors
    grads: dict[str, Tensor] = {}
    grad = _backward_norm(stage, grad, grads)
    if "conv_bias" in t:
        grads["conv_bias"] = grad.sum((0, 2, 3))
    if spec.depthwise and _has_kernels(grad):
        geometry = [*spec.stride, *stage.padding, *spec.dilation]
        dx, dw = torch.ops.mobilenet_ext_gpu.depthwise_backward(grad, stage.x, t["weight"], geometry)
    else:
        groups = spec.in_channels if spec.depthwise else 1
        dx, dw, _ = torch.ops.aten.convolution_backward(
            grad, stage.x, t["weight"], None, spec.stride, stage.padding, spec.dilation, False, (0, 0), groups,
            (True, True, False),
        )  # fmt: skip
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
    done: list[_Item] = []
    before = x
    for item, tensors in split(program.chain, sources):
        shortcut = before if isinstance(item, BlockSpec) and item.residual_back else x
        before = x
        forward, x = _forward_item(item, tensors, x, shortcut)
        done.append(forward)
    result: list[Tensor | None] = []
    pending: Tensor | None = None  # what a shortcut over two items gives the input of the item before
    for forward in reversed(done):
        passed = grad
        grad, ours = _backward_item(forward, grad)
        if pending is not None:
            grad, pending = grad + pending, None
        if isinstance(forward.item, BlockSpec) and forward.item.residual_back:
            pending = passed
        result = ours + result
    return grad.to(dtype), result, None, None, None


@dataclass
class _Item:
    """One item of the chain after its forward; ``squeezed`` is the depthwise output before its scaling, and scale."""

    item: ChainItem
    stages: list[tuple[str, _Stage]]
    squeezed: tuple[Tensor, Tensor] | None = None
    weight_dim: int = 4
    pooled: tuple[int, int] = (1, 1)


def _forward_item(
    item: ChainItem, tensors: list[dict[str, Tensor]], x: Tensor, shortcut: Tensor
) -> tuple[_Item, Tensor]:
    if isinstance(item, LinearSpec):
        spec, t = item.as_conv(), dict(tensors[0])
        t["weight"] = t["weight"].reshape(spec.weight_shape)
        stage, y = _forward_stage(spec, t, x[:, :, None, None])
        return _Item(item, [("linear", stage)], weight_dim=tensors[0]["weight"].dim()), y.flatten(1)
    if isinstance(item, PoolSpec):
        return _Item(item, [], pooled=(x.shape[2], x.shape[3])), x.mean((2, 3))
    y, done = x, _Item(item, [])
    scale = x
    for (role, spec), t in zip(item.stages(), tensors, strict=True):
        if role in SQUEEZE_ROLES:
            stage, scale = _forward_stage(spec, t, y.mean((2, 3), keepdim=True) if role == "reduce" else scale)
            if role == "excite":
                done.squeezed, y = (y, scale), y * scale
        else:
            stage, y = _forward_stage(spec, t, y)
        done.stages.append((role, stage))
    if item.pool:
        y = y.mean((2, 3))
    return done, y + shortcut if item.residual or item.residual_back else y


def _backward_item(done: _Item, grad: Tensor) -> tuple[Tensor, list[Tensor | None]]:
    item = done.item
    if isinstance(item, LinearSpec):
        stage = done.stages[0][1]
        grad, named = _backward_stage(stage, grad[:, :, None, None])
        weight = named["weight"]
        # The source's own shape: (out, in) or (out, in, 1, 1).
        named["weight"] = weight.reshape(weight.shape[: done.weight_dim])
        return grad.flatten(1), [named.get(name) for name in item.sources]
    if isinstance(item, PoolSpec):
        height, width = done.pooled
        return (grad / (height * width))[:, :, None, None].expand(*grad.shape, height, width), []
    if item.pool:
        last = done.stages[-1][1].before
        grad = (grad / (last.shape[2] * last.shape[3]))[:, :, None, None].expand_as(last)
    passed = grad
    result: list[Tensor | None] = []
    outer = grad  # of the depthwise output, while the two layers beside it are gone through
    for role, stage in reversed(done.stages):
        if role == "excite":
            assert done.squeezed is not None
            y, scale = done.squeezed
            outer, grad = grad * scale, (grad * y).sum((2, 3), keepdim=True)
        grad, named = _backward_stage(stage, grad)
        if role == "reduce":
            grad = outer + grad / (outer.shape[2] * outer.shape[3])
        result = [named.get(name) for name in stage.spec.sources] + result
    return (grad + passed if item.residual else grad), result


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, sources, _, ctx.program, ctx.constants = inputs
    ctx.save_for_backward(x, *sources)


def register() -> None:
    """Attach the backward to ``mobilenet_ext::chain_grad``."""
    torch.library.register_autograd("mobilenet_ext::chain_grad", _backward, setup_context=_setup_context)
