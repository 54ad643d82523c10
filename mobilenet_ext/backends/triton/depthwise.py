"""Depthwise convolution + BatchNorm + activation in one pass: PyTorch's conv2d(groups=C), batch_norm and relu6.

One program makes ROWS x BW output pixels of BC channels of one image.  Nine (or 25) shifted loads come out of L1; each
output is accumulated in fp32, scaled, shifted, clamped and stored once, so memory traffic is one read and one write of
the tensors plus the halo of a tile.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from mobilenet_ext.backends.triton import common
from mobilenet_ext.backends.triton.common import Geometry, activate

# (rows, columns, channels, warps) of a program, best guess first; the others are tried by the first-use check. All are
# compiled for every target by triton/aot.py, which is why they are few.
CONFIGS_NHWC = ((2, 8, 64, 4), (2, 16, 32, 4))
CONFIGS_NCHW = ((4, 64, 1, 4), (2, 128, 1, 4))


@triton.jit
def depthwise_kernel(
    x, weight, scale, bias, y, height, width, channels, out_height, out_width, top, left,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    ACT: tl.constexpr, NHWC: tl.constexpr, ROWS: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """x, y (N, H, W, C) with NHWC, else (N, C, H, W), dense; weight (KH, KW, C) in x's dtype; scale, bias fp32 (C).

    Occupancy at least 0.5 with 3x3 taps, 0.375 with 5x5 taps.
    """
    block = tl.program_id(0)
    c_blocks = tl.cdiv(channels, BC)
    w_blocks = tl.cdiv(out_width, BW)
    h_blocks = tl.cdiv(out_height, ROWS)
    c = block % c_blocks * BC + tl.arange(0, BC)
    block = block // c_blocks
    ow = block % w_blocks * BW + tl.arange(0, BW)
    block = block // w_blocks
    oh0 = block % h_blocks * ROWS
    image = (block // h_blocks).to(tl.int64)
    c_in = c < channels
    source = x + image * height * width * channels
    target = y + image * out_height * out_width * channels
    a = tl.load(scale + c, mask=c_in, other=0.0)[None, :]
    b = tl.load(bias + c, mask=c_in, other=0.0)[None, :]
    for r in tl.static_range(ROWS):
        oh = oh0 + r
        acc = tl.zeros((BW, BC), tl.float32)
        for kh in range(KH):  # not unrolled: 25 taps at once would not fit into registers
            ih = oh * SH + kh * DH - top
            row_in = (ih >= 0) & (ih < height) & (oh < out_height)
            for kw in tl.static_range(KW):
                iw = ow * SW + kw * DW - left
                inside = ((iw >= 0) & (iw < width) & row_in)[:, None] & c_in[None, :]
                if NHWC:
                    at = (ih * width + iw)[:, None] * channels + c[None, :]
                else:
                    at = (c * height)[None, :] * width + (ih * width + iw)[:, None]
                v = tl.load(source + at, mask=inside, other=0.0).to(tl.float32)
                k = tl.load(weight + (kh * KW + kw) * channels + c, mask=c_in, other=0.0).to(tl.float32)
                acc += v * k[None, :]
        acc = activate(acc * a + b, ACT)
        if NHWC:
            at = (oh * out_width + ow)[:, None] * channels + c[None, :]
        else:
            at = (c * out_height)[None, :] * out_width + (oh * out_width + ow)[:, None]
        kept = ((ow < out_width) & (oh < out_height))[:, None] & c_in[None, :]
        tl.store(target + at, acc.to(y.dtype.element_ty), mask=kept)


def depthwise(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor,
    geometry: Geometry,
    activation: str = "none",
    config: int = 0,
) -> Tensor:
    """``act(depthwise(x, weight) * scale + bias)``.

    Args:
        x: (N, C, H, W), fp32, fp16 or bf16; NCHW and channels_last are read as they are, other strides are copied.
        weight: (kH, kW, C) in the dtype of ``x``, contiguous.  scale, bias: (C,) fp32.
        config: which of ``CONFIGS_NHWC`` or ``CONFIGS_NCHW``; every one gives the same bits.

    Returns: (N, C, H', W') in the dtype and memory format of ``x``.
    """
    common.check_image("x", x)
    n, channels, height, width = x.shape
    planar = common.is_planar(x)
    x = x.contiguous() if planar else x
    y = common.new_image(x, channels, geometry.height, geometry.width, planar)
    common.check_image("the result", y)
    configs = CONFIGS_NCHW if planar else CONFIGS_NHWC
    rows, columns, lanes, warps = configs[config % len(configs)]
    if common.INTERPRETED and planar:
        columns, lanes = 8, 16  # the interpreter's time goes by programs
    lanes = common.power_of_two(channels, 1, lanes)
    tiles = triton.cdiv(geometry.height, rows) * triton.cdiv(geometry.width, columns) * triton.cdiv(channels, lanes)
    (kh, kw), (sh, sw), (dh, dw) = geometry.kernel, geometry.stride, geometry.dilation
    with common.on_device(x):
        common.launch(
            depthwise_kernel, n * tiles, x, weight, scale, bias, y, height, width, channels, geometry.height,
            geometry.width, geometry.top, geometry.left, KH=kh, KW=kw, SH=sh, SW=sw, DH=dh, DW=dw,
            ACT=common.code(activation), NHWC=not planar, ROWS=rows, BW=columns, BC=lanes, warps=warps,
        )  # fmt: skip
    return y
