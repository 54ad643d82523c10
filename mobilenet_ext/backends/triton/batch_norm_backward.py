"""The backward of BatchNorm + activation from the convolution's stored result, in two passes over memory.

With v the convolution's result, z = v * scale + shift and y = act(z), a gradient dy becomes

    g = dy where act has slope one, else 0        (0 at both ends of ReLU6, as PyTorch's)
    sum_g = sum of g;  sum_gv = sum of g * (v - mean) * rstd
    dv = scale * (g - a - (v - mean) * rstd * b)

with a = b = 0 for running statistics (sum_g and sum_gv are then the gradients of BatchNorm's bias and weight), and
a = sum_g / n, b = sum_gv / n for the statistics of the batch (Ioffe and Szegedy, arXiv 1502.03167, section 3).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mobilenet_ext.backends.triton import common
from mobilenet_ext.backends.triton.reduction import sum_partials

REDUCE_TILE = (16, 32)  # pixels, channels; fixed, since it decides the order of the sum
REDUCE_PROGRAMS = 2048
APPLY_CONFIGS = ((16, 64, 4), (8, 128, 4))


@triton.jit
def masked_gradient(dy, v, scale, shift, ACT: tl.constexpr):
    z = v * scale + shift
    if ACT >= 1:
        dy = tl.where(z > 0.0, dy, 0.0)
    if ACT == 2:
        dy = tl.where(z < 6.0, dy, 0.0)
    return dy


@triton.jit
def reduce_kernel(
    v, dy, scale, shift, mean, rstd, partial, pixels, chunk_pixels, channels,
    ACT: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """v, dy (pixels, C) -> partial (chunks, 2, C) fp32: sum_g and sum_gv of each chunk; vectors are fp32 (C).

    Occupancy at least 0.5.
    """
    block = tl.program_id(0)
    c_blocks = tl.cdiv(channels, BC)
    c = block % c_blocks * BC + tl.arange(0, BC)
    chunk = (block // c_blocks).to(tl.int64)
    m = tl.arange(0, BM)
    c_in = c < channels
    a = tl.load(scale + c, mask=c_in, other=0.0)[None, :]
    b = tl.load(shift + c, mask=c_in, other=0.0)[None, :]
    mu = tl.load(mean + c, mask=c_in, other=0.0)[None, :]
    r = tl.load(rstd + c, mask=c_in, other=0.0)[None, :]
    sum_g = tl.zeros((BM, BC), tl.float32)
    sum_gv = tl.zeros((BM, BC), tl.float32)
    first = chunk * chunk_pixels
    for step in range(tl.cdiv(chunk_pixels, BM)):
        base = first + step * BM
        inside = ((base + m < pixels) & (step * BM + m < chunk_pixels))[:, None] & c_in[None, :]
        at = m[:, None] * channels + c[None, :]
        value = tl.load(v + base * channels + at, mask=inside, other=0.0).to(tl.float32)
        g = masked_gradient(tl.load(dy + base * channels + at, mask=inside, other=0.0).to(tl.float32), value, a, b, ACT)
        sum_g += g
        # Outside, g is zero, but so is the loaded value and not its difference from the mean: 0 * finite is 0.
        sum_gv += g * ((value - mu) * r)
    at = partial + chunk * 2 * channels + c
    tl.store(at, tl.sum(sum_g, 0), mask=c_in)
    tl.store(at + channels, tl.sum(sum_gv, 0), mask=c_in)


@triton.jit
def apply_kernel(
    v, dy, scale, shift, mean, rstd, sums, dv, pixels, channels, count,
    ACT: tl.constexpr, BATCH: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """v, dy (pixels, C), sums (2, C) fp32 -> dv (pixels, C); BATCH: the statistics are those of the batch.

    Occupancy at least 0.5.
    """
    block = tl.program_id(0)
    c_blocks = tl.cdiv(channels, BC)
    c = block % c_blocks * BC + tl.arange(0, BC)
    first = (block // c_blocks).to(tl.int64) * BM
    m = tl.arange(0, BM)
    c_in = c < channels
    inside = (first + m < pixels)[:, None] & c_in[None, :]
    base = first * channels
    at = m[:, None] * channels + c[None, :]
    a = tl.load(scale + c, mask=c_in, other=0.0)[None, :]
    b = tl.load(shift + c, mask=c_in, other=0.0)[None, :]
    value = tl.load(v + base + at, mask=inside, other=0.0).to(tl.float32)
    g = masked_gradient(tl.load(dy + base + at, mask=inside, other=0.0).to(tl.float32), value, a, b, ACT)
    if BATCH:
        mu = tl.load(mean + c, mask=c_in, other=0.0)[None, :]
        r = tl.load(rstd + c, mask=c_in, other=0.0)[None, :]
        g_mean = tl.load(sums + c, mask=c_in, other=0.0)[None, :] / count
        gv_mean = tl.load(sums + channels + c, mask=c_in, other=0.0)[None, :] / count
        g = g - g_mean - (value - mu) * r * gv_mean
    tl.store(dv + base + at, (g * a).to(dv.dtype.element_ty), mask=inside)


def batch_norm_act_backward(
    v: Tensor,
    dy: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bias: Tensor,
    activation: str,
    batch_statistics: bool,
    config: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of ``act((v - mean) * rstd * weight + bias)`` with respect to v, weight and bias.

    Args:
        v, dy: (N, C, H, W), one dtype of fp32, fp16 and bf16, copied unless channels_last.
        mean, rstd, weight, bias: (C,) fp32.
        batch_statistics: whether mean and rstd are those of ``v`` itself, so that they depend on it.

    Returns: (dv like v in channels_last, dweight (C,) fp32, dbias (C,) fp32).
    """
    common.check_image("v", v)
    common.check_image("dy", dy)
    v, dy = common.pixels_last(v), common.pixels_last(dy)
    n, channels, height, width = v.shape
    pixels = n * height * width
    scale = weight * rstd
    shift = bias - mean * scale
    act = common.code(activation)
    bm, bc = REDUCE_TILE
    c_blocks = triton.cdiv(channels, bc)
    chunk = max(bm, triton.cdiv(triton.cdiv(pixels * c_blocks, REDUCE_PROGRAMS), bm) * bm)
    chunks = triton.cdiv(pixels, chunk)
    partial = torch.empty((chunks, 2 * channels), dtype=torch.float32, device=v.device)
    vectors = (scale, shift, mean, rstd)
    with common.on_device(v):
        common.launch(
            reduce_kernel, chunks * c_blocks, v, dy, *vectors, partial, pixels, chunk, channels, ACT=act, BM=bm, BC=bc
        )
        sums = sum_partials(partial)
        dv = common.new_image(v, channels, height, width)
        bm, bc, warps = APPLY_CONFIGS[config % len(APPLY_CONFIGS)]
        bc = common.power_of_two(channels, 1, bc)
        common.launch(
            apply_kernel, triton.cdiv(pixels, bm) * triton.cdiv(channels, bc), v, dy, *vectors, sums, dv, pixels,
            channels, float(pixels), ACT=act, BATCH=batch_statistics, BM=bm, BC=bc, warps=warps,
        )  # fmt: skip
    return dv, sums[channels:], sums[:channels]
