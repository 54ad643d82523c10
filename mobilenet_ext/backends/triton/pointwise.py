"""1x1 convolution + BatchNorm + activation (+ residual) in one pass: a matrix product over the pixels."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from mobilenet_ext.backends.triton import common
from mobilenet_ext.backends.triton.common import finish, product

# (pixels, outputs, depth, warps) of a program.
CONFIGS = ((64, 64, 32, 4), (128, 32, 32, 8), (32, 64, 32, 4))


@triton.jit
def pointwise_kernel(
    x, weight, scale, bias, residual, y, pixels, inputs, outputs,
    ACT: tl.constexpr, RESIDUAL: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """x (pixels, inputs), residual and y (pixels, outputs), weight (inputs, outputs): one dtype; scale, bias fp32.

    Occupancy at least 0.125.
    """
    block = tl.program_id(0)
    n_blocks = tl.cdiv(outputs, BN)
    n = block % n_blocks * BN + tl.arange(0, BN)
    m0 = (block // n_blocks).to(tl.int64) * BM
    m = tl.arange(0, BM)
    k = tl.arange(0, BK)
    m_in = m0 + m < pixels
    n_in = n < outputs
    acc = tl.zeros((BM, BN), tl.float32)
    a_at = x + m0 * inputs + m[:, None] * inputs
    for k0 in range(0, inputs, BK):
        k_in = k0 + k < inputs
        a = tl.load(a_at + (k0 + k)[None, :], mask=m_in[:, None] & k_in[None, :], other=0.0)
        w = tl.load(weight + (k0 + k)[:, None] * outputs + n[None, :], mask=k_in[:, None] & n_in[None, :], other=0.0)
        acc = product(a, w, acc, PRECISION, WIDE)
    at = m[:, None] * outputs + n[None, :]
    start = m0 * outputs
    kept = m_in[:, None] & n_in[None, :]
    finish(acc, scale, bias, n, n_in, residual + start, y + start, at, kept, ACT, RESIDUAL)


def pointwise(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor,
    activation: str = "none",
    residual: Tensor | None = None,
    config: int = 0,
) -> Tensor:
    """``act((x @ weight) * scale + bias) + residual`` at every pixel.

    Args:
        x: (N, C, H, W), fp32, fp16 or bf16; copied unless channels_last.
        weight: (C, C') in the dtype of ``x``, contiguous.  scale, bias: (C',) fp32.
        residual: None or (N, C', H, W) in the dtype of ``x``; copied unless channels_last.

    Returns: (N, C', H, W) channels_last.  fp32 products are exact unless torch allows TF32 for matrix products.
    """
    common.check_image("x", x)
    x = common.pixels_last(x)
    n, inputs, height, width = x.shape
    outputs = weight.shape[1]
    y = common.new_image(x, outputs, height, width)
    bm, bn, bk, warps = CONFIGS[config % len(CONFIGS)]
    bn, bk = common.power_of_two(outputs, 16, bn), common.power_of_two(inputs, 16, bk)
    bm = bm if not common.INTERPRETED else 16
    pixels = n * height * width
    shortcut = x if residual is None else common.pixels_last(residual)
    with common.on_device(x):
        common.launch(
            pointwise_kernel, triton.cdiv(pixels, bm) * triton.cdiv(outputs, bn), x, weight, scale, bias, shortcut, y,
            pixels, inputs, outputs, ACT=common.code(activation), RESIDUAL=residual is not None,
            PRECISION=common.precision(x.dtype), WIDE=common.INTERPRETED, BM=bm, BN=bn, BK=bk, warps=warps,
        )  # fmt: skip
    return y
