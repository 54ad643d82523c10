"""Gradients of a depthwise convolution: with respect to its input (gather) and its weight (two stages).

Both read every element of the gradient a constant number of times and add in an order that depends on shapes alone:
no atomics, so the same bits at every call.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mobilenet_ext.backends.triton import common
from mobilenet_ext.backends.triton.common import Geometry
from mobilenet_ext.backends.triton.reduction import sum_partials

# (columns, channels, warps) of a program of the data kernel.
DATA_CONFIGS = ((8, 64, 4), (16, 32, 4))
WEIGHT_TILE = (4, 32)  # pixels, channels; fixed, since it decides the order of the sum
WEIGHT_PROGRAMS = 2048  # about as many programs as fill a GPU; a constant, so that the order is the same on every GPU


@triton.jit
def backward_data_kernel(
    dy, weight, dx, height, width, channels, out_height, out_width, top, left,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    BW: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """dy (N, H', W', C), weight (KH, KW, C) -> dx (N, H, W, C).

    A program makes columns of one residue modulo SW in one row, so that which taps hit is one scalar per tap: at
    stride 2 the four parity cases, with no load that is known to be masked.
    Occupancy at least 0.5 with 3x3 taps, 0.5 with 5x5 taps.
    """
    block = tl.program_id(0)
    c_blocks = tl.cdiv(channels, BC)
    c = block % c_blocks * BC + tl.arange(0, BC)
    block = block // c_blocks
    residue = block % SW
    block = block // SW
    w_blocks = tl.cdiv(width, BW * SW)
    iw = (block % w_blocks * BW + tl.arange(0, BW)) * SW + residue
    block = block // w_blocks
    ih = block % height
    image = (block // height).to(tl.int64)
    c_in = c < channels
    source = dy + image * out_height * out_width * channels
    acc = tl.zeros((BW, BC), tl.float32)
    for kh in range(KH):
        high = ih + top - kh * DH
        if high % SH == 0:
            oh = high // SH
            for kw in tl.static_range(KW):
                if (residue + left - kw * DW) % SW == 0:
                    ow = (iw + left - kw * DW) // SW
                    inside = (oh >= 0) & (oh < out_height) & (ow >= 0) & (ow < out_width)
                    at = (oh * out_width + ow)[:, None] * channels + c[None, :]
                    g = tl.load(source + at, mask=inside[:, None] & c_in[None, :], other=0.0).to(tl.float32)
                    k = tl.load(weight + (kh * KW + kw) * channels + c, mask=c_in, other=0.0).to(tl.float32)
                    acc += g * k[None, :]
    at = image * height * width * channels + (ih * width + iw)[:, None] * channels + c[None, :]
    tl.store(dx + at, acc.to(dx.dtype.element_ty), mask=(iw < width)[:, None] & c_in[None, :])


@triton.jit
def backward_weight_kernel(
    x, dy, partial, rows, chunk_rows, height, width, channels, out_height, out_width, top, left,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    TAPS: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """x (N, H, W, C), dy (N, H', W', C) -> partial (chunks, KH * KW, C) fp32, one row of it per chunk of output rows.

    All taps of BP pixels are one tile (BP, TAPS, BC) of accumulators, so dy is read once; the shifts of x come from L1.
    Occupancy at least 0.375 with 3x3 taps, 0.25 with 5x5 taps.
    """
    block = tl.program_id(0)
    c_blocks = tl.cdiv(channels, BC)
    c = block % c_blocks * BC + tl.arange(0, BC)
    chunk = block // c_blocks
    tap = tl.arange(0, TAPS)
    kh = tap // KW
    kw = tap % KW
    c_in = c < channels
    tap_in = tap < KH * KW
    pixel = tl.arange(0, BP)
    acc = tl.zeros((BP, TAPS, BC), tl.float32)
    first = chunk * chunk_rows
    for row in range(first, min(first + chunk_rows, rows)):
        oh = row % out_height
        image = (row // out_height).to(tl.int64)
        source = x + image * height * width * channels
        gradient = dy + (image * out_height + oh) * out_width * channels
        ih = oh * SH + kh * DH - top
        row_in = (ih >= 0) & (ih < height) & tap_in
        for ow0 in range(0, out_width, BP):
            ow = ow0 + pixel
            ow_in = ow < out_width
            g = tl.load(
                gradient + ow[:, None] * channels + c[None, :], mask=ow_in[:, None] & c_in[None, :], other=0.0
            ).to(tl.float32)
            iw = ow[:, None] * SW + kw[None, :] * DW - left
            inside = row_in[None, :] & (iw >= 0) & (iw < width) & ow_in[:, None]
            at = (ih[None, :] * width + iw)[:, :, None] * channels + c[None, None, :]
            v = tl.load(source + at, mask=inside[:, :, None] & c_in[None, None, :], other=0.0).to(tl.float32)
            acc += v * g[:, None, :]
    total = tl.sum(acc, 0)
    at = (chunk * (KH * KW) + tap)[:, None].to(tl.int64) * channels + c[None, :]
    tl.store(partial + at, total, mask=tap_in[:, None] & c_in[None, :])


def backward_data(dy: Tensor, weight: Tensor, geometry: Geometry, height: int, width: int, config: int = 0) -> Tensor:
    """The gradient of a depthwise convolution with respect to its input of ``height`` x ``width`` pixels.

    ``dy`` is (N, C, H', W'), fp32, fp16 or bf16, copied unless channels_last; ``weight`` (kH, kW, C) in its dtype.
    The counterpart of ``torch.nn.grad.conv2d_input`` with groups=C.

    Returns: (N, C, H, W) channels_last in the dtype of ``dy``; sums are fp32.
    """
    common.check_image("dy", dy)
    dy = common.pixels_last(dy)
    n, channels = dy.shape[:2]
    dx = common.new_image(dy, channels, height, width)
    common.check_image("the result", dx)
    columns, lanes, warps = DATA_CONFIGS[config % len(DATA_CONFIGS)]
    lanes = common.power_of_two(channels, 1, lanes)
    (kh, kw), (sh, sw), (dh, dw) = geometry.kernel, geometry.stride, geometry.dilation
    tiles = height * triton.cdiv(width, columns * sw) * sw * triton.cdiv(channels, lanes)
    with common.on_device(dy):
        common.launch(
            backward_data_kernel, n * tiles, dy, weight, dx, height, width, channels, geometry.height, geometry.width,
            geometry.top, geometry.left, KH=kh, KW=kw, SH=sh, SW=sw, DH=dh, DW=dw, BW=columns, BC=lanes, warps=warps,
        )  # fmt: skip
    return dx


def backward_weight(x: Tensor, dy: Tensor, geometry: Geometry) -> Tensor:
    """The gradient of a depthwise convolution with respect to its weight, as (kH, kW, C) fp32.

    ``x`` is (N, C, H, W) and ``dy`` (N, C, H', W'), one dtype of fp32, fp16 and bf16, copied unless channels_last.
    The counterpart of ``torch.nn.grad.conv2d_weight`` with groups=C; fp32 sums in an order that shapes decide.
    """
    common.check_image("x", x)
    common.check_image("dy", dy)
    x, dy = common.pixels_last(x), common.pixels_last(dy)
    n, channels, height, width = x.shape
    (kh, kw), (sh, sw), (dh, dw) = geometry.kernel, geometry.stride, geometry.dilation
    rows = n * geometry.height
    pixels, lanes = WEIGHT_TILE
    c_blocks = triton.cdiv(channels, lanes)
    chunk_rows = max(1, triton.cdiv(rows * c_blocks, WEIGHT_PROGRAMS))
    chunks = triton.cdiv(rows, chunk_rows)
    partial = torch.empty((chunks, kh * kw * channels), dtype=torch.float32, device=x.device)
    with common.on_device(x):
        common.launch(
            backward_weight_kernel, chunks * c_blocks, x, dy, partial, rows, chunk_rows, height, width, channels,
            geometry.height, geometry.width, geometry.top, geometry.left, KH=kh, KW=kw, SH=sh, SW=sw, DH=dh, DW=dw,
            TAPS=triton.next_power_of_2(kh * kw), BP=pixels, BC=lanes,
        )  # fmt: skip
    return sum_partials(partial).view(kh, kw, channels)
