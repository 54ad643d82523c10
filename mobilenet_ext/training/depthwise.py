"""The depthwise convolution alone with gradients: ``mobilenet_ext::depthwise_conv2d``.

channels_last float32 tensors are served in native code (``csrc/ops/depthwise.cpp``).  What is here serves the others: a
contiguous input is converted on the way in, float64 takes plain operators.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mobilenet_ext.memory_format import channels_last
from mobilenet_ext.training import passes
from mobilenet_ext.training.passes import Geometry
from mobilenet_ext.training.scratch import empty_image

_ops = torch.ops.mobilenet_ext


def _geometry(codes: Sequence[int], x: Tensor) -> Geometry:
    kh, kw, sh, sw, dh, dw, top, bottom, left, right = codes
    out = (
        (x.shape[2] + top + bottom - dh * (kh - 1) - 1) // sh + 1,
        (x.shape[3] + left + right - dw * (kw - 1) - 1) // sw + 1,
    )
    return Geometry((kh, kw), (sh, sw), (dh, dw), (top, bottom, left, right), out)


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: list[int]) -> Tensor:
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        g = _geometry(geometry, x)
        y = empty_image(x, x.shape[0], x.shape[1], *g.out)
        bias = None if bias is None else bias.contiguous()
        passes.depthwise(channels_last(x), weight.contiguous(), bias, None, g, False, y)
        return y


def _fake_forward(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: list[int]) -> Tensor:
    size = (x.shape[0], x.shape[1], *_geometry(geometry, x).out)
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _backward(
    g: Tensor, x: Tensor, weight: Tensor, geometry: list[int], needs: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        x, g = channels_last(x), channels_last(g)
        none = x.new_empty(0)
        dx = empty_image(x, *x.shape) if needs[0] else None
        dw, db = none.clone(), none.clone()
        if needs[0] or needs[1]:
            found, _ = passes.depthwise_gradient(
                g, None, x, weight.contiguous(), None, None, _geometry(geometry, x), bool(needs[1]), dx
            )
            dw = found if needs[1] else dw
        if needs[2]:
            rows = passes.matrix(g)
            db = (passes.moments(rows)[0] * rows.shape[0]).to(x.dtype) if rows.shape[0] else g.new_zeros(x.shape[1])
        return none if dx is None else dx, dw, db


def _fake_backward(
    g: Tensor, x: Tensor, weight: Tensor, geometry: list[int], needs: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    none = x.new_empty(0)
    dw = x.new_empty(weight.shape) if needs[1] else none.clone()
    return dx if needs[0] else none, dw, x.new_empty(x.shape[1]) if needs[2] else none.clone()


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, ctx.geometry = inputs
    ctx.needs = [int(t is not None and t.requires_grad) for t in (x, weight, bias)]
    ctx.save_for_backward(x, weight)


def _autograd(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
    x, weight = ctx.saved_tensors
    found = _ops.depthwise_conv2d_backward(g.to(x.dtype), x, weight, ctx.geometry, ctx.needs)
    dx, dw, db = (grad if needed else None for grad, needed in zip(found, ctx.needs, strict=True))
    return dx, dw, db, None


def _refuse(ctx: Any, *grads: Any) -> None:
    raise RuntimeError(
        "depthwise_conv2d has first derivatives only; torch.nn.functional.conv2d can be differentiated again"
    )


def register() -> None:
    """Give the operators of ``csrc/library.cpp`` their general implementation, fakes and gradients."""
    torch.library.impl("mobilenet_ext::depthwise_conv2d_general", "CPU", _forward)
    torch.library.impl("mobilenet_ext::depthwise_conv2d_backward_general", "CPU", _backward)
    torch.library.register_fake("mobilenet_ext::depthwise_conv2d", _fake_forward)
    torch.library.register_fake("mobilenet_ext::depthwise_conv2d_backward", _fake_backward)
    torch.library.register_autograd("mobilenet_ext::depthwise_conv2d", _autograd, setup_context=_setup_context)
    torch.library.register_autograd(
        "mobilenet_ext::depthwise_conv2d_backward", _refuse, setup_context=lambda ctx, inputs, output: None
    )
