"""Depthwise + project, and whole inverted residuals, in one kernel: the hidden tensor is never written.

``depthwise_project`` reads the expanded tensor at nine shifts and feeds the clamped sums to the matrix unit.
``inverted_residual`` also makes the expanded pixels itself, once per tap: nine times the expand's arithmetic for no
hidden traffic at all, which pays for small batches and images, where launches and latency cost more than products.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from mobilenet_ext.backends.triton import common
from mobilenet_ext.backends.triton.common import Geometry, activate, finish, product

# (pixels, hidden channels, warps with up to 32 outputs, warps with more) of a program. Sums of more than WIDEST_OUTPUT
# would spill on some GPU: more outputs are more programs, each of which repeats the depthwise stage.
PROJECT_CONFIGS = ((32, 32, 4, 8), (16, 64, 4, 4))
WIDEST_OUTPUT = 64
# (pixels, hidden channels, most outputs, warps) of a program, likewise; half the pixels spill in TF32 on sm_100.
BLOCK_CONFIGS = ((32, 32, 32, 4),)
WIDEST_INPUT = 32  # inputs per product of the expand stage


class Stage(NamedTuple):
    """One folded convolution: weight in the dtype of the image, (kH, kW, C) or (C, C'); scale and bias (C',) fp32."""

    weight: Tensor
    scale: Tensor
    bias: Tensor
    activation: str


@triton.jit
def depthwise_project_kernel(
    x, dw_weight, dw_scale, dw_bias, pj_weight, pj_scale, pj_bias, residual, y, pixels, height, width, hidden, outputs,
    out_height, out_width, top, left,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    DW_ACT: tl.constexpr, PJ_ACT: tl.constexpr, RESIDUAL: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
    BM: tl.constexpr, BC: tl.constexpr, BO: tl.constexpr,
):  # fmt: skip
    """x (N, H, W, hidden) -> y (N, H', W', outputs); weights (KH, KW, hidden) and (hidden, outputs) in x's dtype.

    Occupancy at least 0.125.
    """
    block = tl.program_id(0)
    o_blocks = tl.cdiv(outputs, BO)
    o = block % o_blocks * BO + tl.arange(0, BO)
    p = block // o_blocks * BM + tl.arange(0, BM)
    p_in = p < pixels
    o_in = o < outputs
    ow = p % out_width
    oh = p // out_width % out_height
    image = x + (p // out_width // out_height).to(tl.int64) * height * width * hidden
    acc = tl.zeros((BM, BO), tl.float32)
    for c0 in range(0, hidden, BC):
        c = c0 + tl.arange(0, BC)
        c_in = c < hidden
        sums = tl.zeros((BM, BC), tl.float32)
        for kh in range(KH):
            ih = oh * SH + kh * DH - top
            for kw in tl.static_range(KW):
                iw = ow * SW + kw * DW - left
                inside = p_in & (ih >= 0) & (ih < height) & (iw >= 0) & (iw < width)
                at = ((ih * width + iw) * hidden)[:, None] + c[None, :]
                v = tl.load(image[:, None] + at, mask=inside[:, None] & c_in[None, :], other=0.0).to(tl.float32)
                k = tl.load(dw_weight + (kh * KW + kw) * hidden + c, mask=c_in, other=0.0).to(tl.float32)
                sums += v * k[None, :]
        a = tl.load(dw_scale + c, mask=c_in, other=0.0)[None, :]
        b = tl.load(dw_bias + c, mask=c_in, other=0.0)[None, :]
        h = activate(sums * a + b, DW_ACT).to(x.dtype.element_ty)
        w = tl.load(pj_weight + c[:, None] * outputs + o[None, :], mask=c_in[:, None] & o_in[None, :], other=0.0)
        acc = product(h, w, acc, PRECISION, WIDE)
    at = p.to(tl.int64)[:, None] * outputs + o[None, :]
    finish(acc, pj_scale, pj_bias, o, o_in, residual, y, at, p_in[:, None] & o_in[None, :], PJ_ACT, RESIDUAL)


@triton.jit
def inverted_residual_kernel(
    x, ex_weight, ex_scale, ex_bias, dw_weight, dw_scale, dw_bias, pj_weight, pj_scale, pj_bias, y,
    pixels, height, width, inputs, hidden, outputs, out_height, out_width, top, left,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    EX_ACT: tl.constexpr, DW_ACT: tl.constexpr, PJ_ACT: tl.constexpr, RESIDUAL: tl.constexpr,
    PRECISION: tl.constexpr, WIDE: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr, BO: tl.constexpr,
):  # fmt: skip
    """x (N, H, W, inputs) -> y (N, H', W', outputs); a hidden pixel outside the image is zero, not act(bias).

    Occupancy at least 0.25.
    """
    block = tl.program_id(0)
    o_blocks = tl.cdiv(outputs, BO)
    o = block % o_blocks * BO + tl.arange(0, BO)
    p = block // o_blocks * BM + tl.arange(0, BM)
    k = tl.arange(0, BK)
    p_in = p < pixels
    o_in = o < outputs
    ow = p % out_width
    oh = p // out_width % out_height
    image = x + (p // out_width // out_height).to(tl.int64) * height * width * inputs
    acc = tl.zeros((BM, BO), tl.float32)
    for c0 in range(0, hidden, BC):
        c = c0 + tl.arange(0, BC)
        c_in = c < hidden
        ex_a = tl.load(ex_scale + c, mask=c_in, other=0.0)[None, :]
        ex_b = tl.load(ex_bias + c, mask=c_in, other=0.0)[None, :]
        sums = tl.zeros((BM, BC), tl.float32)
        # One tap per step of an ordinary loop: unrolled, the products of all taps would be alive at once.
        for tap in range(KH * KW):
            kh = tap // KW
            ih = oh * SH + kh * DH - top
            iw = ow * SW + (tap - kh * KW) * DW - left
            inside = p_in & (ih >= 0) & (ih < height) & (iw >= 0) & (iw < width)
            at = (ih * width + iw) * inputs
            expanded = tl.zeros((BM, BC), tl.float32)
            for k0 in range(0, inputs, BK):
                k_in = k0 + k < inputs
                v = tl.load(
                    image[:, None] + (at[:, None] + (k0 + k)[None, :]), mask=inside[:, None] & k_in[None, :], other=0.0
                )
                w = tl.load(
                    ex_weight + (k0 + k)[:, None] * hidden + c[None, :], mask=k_in[:, None] & c_in[None, :], other=0.0
                )
                expanded = product(v, w, expanded, PRECISION, WIDE)
            h = activate(expanded * ex_a + ex_b, EX_ACT).to(x.dtype.element_ty).to(tl.float32)
            h = tl.where(inside[:, None], h, 0.0)
            tap_weight = tl.load(dw_weight + tap * hidden + c, mask=c_in, other=0.0).to(tl.float32)
            sums += h * tap_weight[None, :]
        a = tl.load(dw_scale + c, mask=c_in, other=0.0)[None, :]
        b = tl.load(dw_bias + c, mask=c_in, other=0.0)[None, :]
        g = activate(sums * a + b, DW_ACT).to(x.dtype.element_ty)
        w = tl.load(pj_weight + c[:, None] * outputs + o[None, :], mask=c_in[:, None] & o_in[None, :], other=0.0)
        acc = product(g, w, acc, PRECISION, WIDE)
    at = p.to(tl.int64)[:, None] * outputs + o[None, :]
    finish(acc, pj_scale, pj_bias, o, o_in, x, y, at, p_in[:, None] & o_in[None, :], PJ_ACT, RESIDUAL)


def _check_pixels(pixels: int) -> None:
    if pixels > 2**31 - 1 - 128:
        raise ValueError(f"the result has {pixels} pixels; allowed: up to {2**31 - 129}, so split the batch")


def depthwise_project(
    x: Tensor, depthwise: Stage, project: Stage, geometry: Geometry, residual: Tensor | None = None, config: int = 0
) -> Tensor:
    """Depthwise and 1x1 convolution, each with BatchNorm and activation, plus ``residual``.

    ``x`` is (N, C, H, W), fp32, fp16 or bf16, copied unless channels_last; ``residual`` (N, C', H', W') in its dtype.
    The depthwise result is rounded to the dtype of ``x`` before the product, as a separate kernel would store it.

    Returns: (N, C', H', W') channels_last.
    """
    common.check_image("x", x)
    x = common.pixels_last(x)
    n, hidden, height, width = x.shape
    outputs = project.weight.shape[1]
    y = common.new_image(x, outputs, geometry.height, geometry.width)
    bm, bc, few, many = PROJECT_CONFIGS[config % len(PROJECT_CONFIGS)]
    bm = bm if not common.INTERPRETED else 16
    bo = common.power_of_two(outputs, 16, WIDEST_OUTPUT)
    pixels = n * geometry.height * geometry.width
    _check_pixels(pixels)
    (kh, kw), (sh, sw), (dh, dw) = geometry.kernel, geometry.stride, geometry.dilation
    shortcut = x if residual is None else common.pixels_last(residual)
    with common.on_device(x):
        common.launch(
            depthwise_project_kernel, triton.cdiv(pixels, bm) * triton.cdiv(outputs, bo), x, *depthwise[:3],
            *project[:3], shortcut, y, pixels, height, width, hidden, outputs, geometry.height, geometry.width,
            geometry.top, geometry.left, KH=kh, KW=kw, SH=sh, SW=sw, DH=dh, DW=dw,
            DW_ACT=common.code(depthwise.activation), PJ_ACT=common.code(project.activation),
            RESIDUAL=residual is not None, PRECISION=common.precision(x.dtype), WIDE=common.INTERPRETED,
            BM=bm, BC=bc, BO=bo, warps=few if bo <= 32 else many, stages=1,
        )  # fmt: skip
    return y


def inverted_residual(
    x: Tensor,
    expand: Stage,
    depthwise: Stage,
    project: Stage,
    geometry: Geometry,
    residual: bool = False,
    config: int = 0,
) -> Tensor:
    """MobileNetV2's inverted residual (arXiv 1801.04381, section 3.3) in one kernel, expand recomputed per tap.

    ``x`` is (N, C, H, W), fp32, fp16 or bf16, copied unless channels_last; ``residual`` adds it to the result.
    Hidden values are rounded to the dtype of ``x`` where separate kernels would store them.

    Returns: (N, C', H', W') channels_last.
    """
    common.check_image("x", x)
    x = common.pixels_last(x)
    n, inputs, height, width = x.shape
    hidden, outputs = project.weight.shape
    y = common.new_image(x, outputs, geometry.height, geometry.width)
    bm, bc, widest, warps = BLOCK_CONFIGS[config % len(BLOCK_CONFIGS)]
    bm = bm if not common.INTERPRETED else 16
    bo, bk = common.power_of_two(outputs, 16, widest), common.power_of_two(inputs, 16, WIDEST_INPUT)
    pixels = n * geometry.height * geometry.width
    _check_pixels(pixels)
    (kh, kw), (sh, sw), (dh, dw) = geometry.kernel, geometry.stride, geometry.dilation
    with common.on_device(x):
        common.launch(
            inverted_residual_kernel, triton.cdiv(pixels, bm) * triton.cdiv(outputs, bo), x, *expand[:3],
            *depthwise[:3], *project[:3], y, pixels, height, width, inputs, hidden, outputs, geometry.height,
            geometry.width, geometry.top, geometry.left, KH=kh, KW=kw, SH=sh, SW=sw, DH=dh, DW=dw,
            EX_ACT=common.code(expand.activation), DW_ACT=common.code(depthwise.activation),
            PJ_ACT=common.code(project.activation), RESIDUAL=residual, PRECISION=common.precision(x.dtype),
            WIDE=common.INTERPRETED, BM=bm, BK=bk, BC=bc, BO=bo, warps=warps, stages=1,
        )  # fmt: skip
    return y
