"""The second stage of the deterministic sums: partial results, added in the order of their chunks."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mobilenet_ext.backends.triton import common

TILE = (16, 64)  # chunks, elements; fixed, since it decides the order of the sum


@triton.jit
def sum_partials_kernel(partial, total, chunks, elements, BK: tl.constexpr, BE: tl.constexpr):
    """partial (chunks, elements) fp32 -> total (elements) fp32.

    Occupancy at least 1.0.
    """
    e = tl.program_id(0) * BE + tl.arange(0, BE)
    k = tl.arange(0, BK)
    e_in = e < elements
    acc = tl.zeros((BK, BE), tl.float32)
    for k0 in range(0, chunks, BK):
        at = (k0 + k)[:, None].to(tl.int64) * elements + e[None, :]
        acc += tl.load(partial + at, mask=(k0 + k < chunks)[:, None] & e_in[None, :], other=0.0)
    tl.store(total + e, tl.sum(acc, 0), mask=e_in)


def sum_partials(partial: Tensor) -> Tensor:
    """The sum over the first dimension of a contiguous (chunks, elements) fp32 tensor, the same bits every time."""
    chunks, elements = partial.shape
    total = torch.empty(elements, dtype=torch.float32, device=partial.device)
    with common.on_device(partial):
        common.launch(
            sum_partials_kernel,
            triton.cdiv(elements, TILE[1]),
            partial,
            total,
            chunks,
            elements,
            BK=TILE[0],
            BE=TILE[1],
        )
    return total
