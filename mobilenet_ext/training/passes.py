"""The pieces of a training step on channels_last memory: native kernels for float32, plain operators for float64.

A *matrix* is a contiguous (pixels, channels) tensor, the memory of a channels_last image.  Vectors hold one value per
channel.  Statistics and sums are float64 whatever the dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mobilenet_ext.memory_format import channels_last
from mobilenet_ext.spec import ConvSpec

_ops = torch.ops.mobilenet_ext
_INFINITY = float("inf")
BOUNDS = {"none": (-_INFINITY, _INFINITY), "relu": (0.0, _INFINITY), "relu6": (0.0, 6.0)}


class Affine(NamedTuple):
    """What stands between two convolutions: z = x * scale + shift, then an activation with these bounds."""

    scale: Tensor
    shift: Tensor
    lo: float
    hi: float


class Coefficients(NamedTuple):
    """gradient of x = a * g' + b * (x - center) + c, where g' is the gradient behind the activation's mask."""

    a: Tensor
    b: Tensor | None
    c: Tensor | None
    center: Tensor


def matrix(image: Tensor) -> Tensor:
    """The memory of a channels_last image as a matrix."""
    return image.permute(0, 2, 3, 1).reshape(-1, image.shape[1])


def image_of(rows: Tensor, n: int, height: int, width: int) -> Tensor:
    """The inverse of :func:`matrix`."""
    return rows.view(n, height, width, rows.shape[1]).permute(0, 3, 1, 2)


def _native(x: Tensor) -> bool:
    return x.dtype == torch.float32


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population variance of every column of a matrix."""
    if _native(x):
        mean, var = _ops.column_moments(x)
        return mean, var
    return x.mean(0).double(), x.var(0, unbiased=False).double()


def merge(first: tuple[int, Tensor, Tensor], second: tuple[int, Tensor, Tensor]) -> tuple[int, Tensor, Tensor]:
    """(count, mean, variance) of two sets of rows together (Chan, Golub and LeVeque 1979)."""
    n, m = first[0], second[0]
    delta = second[1] - first[1]
    mean = first[1] + delta * (m / (n + m))
    var = (first[2] * n + second[2] * m + delta * delta * (n * m / (n + m))) / (n + m)
    return n + m, mean, var


def _masked(g: Tensor, x: Tensor, act: Affine) -> Tensor:
    z = x * act.scale + act.shift
    return torch.where((z <= act.lo) | (z >= act.hi), torch.zeros_like(g), g)


def apply(x: Tensor, act: Affine, out: Tensor, residual: Tensor | None = None) -> Tensor:
    """clamp(x * scale + shift, lo, hi), plus ``residual``, into ``out``; matrices."""
    if _native(x):
        _ops.affine_act(x, act.scale, act.shift, residual, act.lo, act.hi, out)
        return out
    y = (x * act.scale + act.shift).clamp(act.lo, act.hi)
    return out.copy_(y if residual is None else y + residual)


def reduce(g: Tensor, x: Tensor, act: Affine, center: Tensor) -> Tensor:
    """(2, channels): the sums of g' and of g' * (x - center)."""
    if _native(x):
        return _ops.act_reduce(g, x, act.scale, act.shift, center, act.lo, act.hi)
    masked = _masked(g, x, act)
    return torch.stack([masked.sum(0), (masked * (x - center)).sum(0)]).double()


def gradient(g: Tensor, x: Tensor, act: Affine, k: Coefficients, out: Tensor) -> Tensor:
    """The gradient of ``x`` into ``out``; matrices."""
    if _native(x):
        _ops.act_gradient(g, x, act.scale, act.shift, act.lo, act.hi, k.a, k.b, k.c, k.center, out)
        return out
    y = _masked(g, x, act) * k.a
    return out.copy_(y if k.b is None or k.c is None else y + (x - k.center) * k.b + k.c)


def product(a: Tensor, b: Tensor, transposed: bool, out: Tensor, before: Affine | None = None) -> Tensor:
    """a b, or with ``transposed`` a b^T, into ``out``; of ``before(a)`` if given.  ``b`` is a small matrix."""
    if _native(a):
        scale, shift, lo, hi = before or (None, None, 0.0, 0.0)
        _ops.rows_product(a, b, transposed, scale, shift, lo, hi, out)
        return out
    if before is not None:
        a = apply(a, before, torch.empty_like(a))
    return torch.mm(a, b.t() if transposed else b, out=out)


def weight_product(wide: Tensor, narrow: Tensor, center: Tensor | None, total: Tensor | None) -> Tensor:
    """wide^T (narrow - center), added to ``total`` in place if given; the same bits at any number of threads."""
    if _native(wide):
        out = wide.new_empty((wide.shape[1], narrow.shape[1])) if total is None else total
        _ops.weight_product(wide, narrow, center, total is not None, out)
        return out
    product = torch.mm(wide.t(), narrow if center is None else narrow - center)
    return product if total is None else total.add_(product)


def patches(x: Tensor, spec: ConvSpec, padding: Sequence[int], out: tuple[int, int]) -> Tensor:
    """What a dense convolution multiplies its weights with: (pixels, kh * kw * channels) of a channels_last image.

    ``padding`` is top, bottom, left, right; ``out`` the height and width of the result.
    """
    top, bottom, left, right = padding
    padded = channels_last(F.pad(x, (left, right, top, bottom)))
    image, channel, row, pixel = padded.stride()
    (kh, kw), (sh, sw), (dh, dw) = spec.kernel, spec.stride, spec.dilation
    shape = (x.shape[0], *out, kh, kw, x.shape[1])
    windows = padded.as_strided(shape, (image, row * sh, pixel * sw, row * dh, pixel * dw, channel))
    return windows.reshape(-1, kh * kw * x.shape[1])


class Geometry(NamedTuple):
    """A depthwise convolution of one size: paddings are top, bottom, left, right; ``out`` is (height, width)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int, int, int]
    out: tuple[int, int]

    def encoded(self) -> list[int]:
        return [*self.kernel, *self.stride, *self.dilation, self.padding[0], self.padding[2], *self.out]


def depthwise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    before: Affine | None,
    geometry: Geometry,
    wants_moments: bool,
    out: Tensor,
) -> tuple[Tensor, Tensor]:
    """The depthwise convolution of ``before(x)`` into ``out``, channels_last images, and its moments if wanted."""
    if _native(x):
        scale, shift, lo, hi = before or (None, None, 0.0, 0.0)
        mean, var = _ops.depthwise_forward(
            x, weight, bias, scale, shift, lo, hi, geometry.encoded(), wants_moments, out
        )
        return mean, var
    out.copy_(_convolve(_activated(x, before), weight, bias, geometry))
    return moments(matrix(out)) if wants_moments else (x.new_empty(0), x.new_empty(0))


class Behind(NamedTuple):
    """The gradient at hand is behind ``after`` of ``y``, a convolution's result, whose gradient it makes by
    ``coefficients``."""

    y: Tensor
    after: Affine
    coefficients: Coefficients


def depthwise_gradient(
    g: Tensor,
    behind: Behind | None,
    x: Tensor,
    weight: Tensor,
    before: Affine | None,
    center: Tensor | None,
    geometry: Geometry,
    need_weight: bool,
    out: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Gradients of a depthwise convolution of ``before(x)``: the weight's, and sums as :func:`reduce` gives them.

    ``out`` receives the input's; with ``before`` that stops at its mask, and the sums are over it and ``x - center``.
    Without ``behind``, ``g`` is the gradient of the convolution's own result.
    """
    if _native(x):
        scale, shift, lo, hi = before or (None, None, 0.0, 0.0)
        y, tensors, bounds = None, [], []
        if behind is not None:
            y, after, k = behind
            tensors, bounds = [after.scale, after.shift, k.a], [after.lo, after.hi]
            if k.b is not None and k.c is not None:
                tensors += [k.b, k.c, k.center]
        dw, sums = _ops.depthwise_backward(
            g, y, tensors, bounds, x, weight, scale, shift, center, lo, hi, geometry.encoded(), need_weight, out
        )
        return dw, sums
    n, _, height, width = x.shape
    if behind is not None:
        rows = matrix(behind.y)
        rows = gradient(matrix(g), rows, behind.after, behind.coefficients, torch.empty_like(rows))
        g = image_of(rows, n, *geometry.out)
    top, bottom, left, right = geometry.padding
    padded = F.pad(_activated(x, before), (left, right, top, bottom))
    dx, dw, _ = torch.ops.aten.convolution_backward(
        g, padded, weight, None, geometry.stride, (0, 0), geometry.dilation, False, (0, 0), x.shape[1],
        (True, True, False),
    )  # fmt: skip
    dx = dx[:, :, top : top + height, left : left + width]
    sums = x.new_empty((2, 0), dtype=torch.float64)
    if before is not None and center is not None:
        rows = matrix(dx)
        sums = reduce(rows, matrix(x), before, center)
        dx = image_of(_masked(rows, matrix(x), before), n, height, width)
    if out is not None:
        out.copy_(dx)
    return dw, sums


def _activated(x: Tensor, before: Affine | None) -> Tensor:
    if before is None:
        return x
    rows = matrix(x)
    return image_of(apply(rows, before, torch.empty_like(rows)), x.shape[0], x.shape[2], x.shape[3])


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    top, bottom, left, right = geometry.padding
    x = F.pad(x, (left, right, top, bottom))
    return F.conv2d(x, weight, bias, geometry.stride, 0, geometry.dilation, weight.shape[0])
