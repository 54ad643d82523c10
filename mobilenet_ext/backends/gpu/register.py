"""The chain operators for the CUDA dispatch key, which serves NVIDIA and AMD GPUs alike.

Registration costs nothing and needs neither a GPU nor Triton; the kernels are imported at the first call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

import mobilenet_ext.backends.gpu.gradient_ops  # noqa: F401  registers the operators of the gradients

if TYPE_CHECKING:
    from mobilenet_ext.backends.gpu.packing import PackedItem

_library = torch.library.Library("mobilenet_ext", "IMPL")


def check(x: Tensor, sources: list[Tensor], in_channels: int) -> None:
    """Errors that name the argument, the value and what is allowed, as those of the CPU kernels do."""
    from mobilenet_ext.backends.gpu.limits import DTYPES

    if x.dim() != 4:
        raise RuntimeError(f"x has shape {tuple(x.shape)}; allowed: four dimensions (N, C, H, W)")
    if x.dtype not in DTYPES:
        raise RuntimeError(f"x is {x.dtype}; allowed: torch.float32, torch.float16, torch.bfloat16")
    if x.shape[1] != in_channels:
        raise RuntimeError(f"x has {x.shape[1]} channels (shape {tuple(x.shape)}); this block takes {in_channels}")
    for source in sources:
        if source.device != x.device:
            raise RuntimeError(f"sources has a tensor on {source.device}; allowed: the device of x, {x.device}")
        if source.is_floating_point() and source.dtype not in (x.dtype, torch.float32):
            raise RuntimeError(f"sources has a {source.dtype}; allowed: the dtype of x, {x.dtype}, or torch.float32")


def chain(x: Tensor, sources: list[Tensor], slot: Tensor | None, program: list[int], constants: list[float]) -> Tensor:
    """``mobilenet_ext::chain`` on a GPU; see ``csrc/library.cpp`` for the schema."""
    from mobilenet_ext.backends.gpu import runtime, slots
    from mobilenet_ext.spec import LinearSpec

    capturing = runtime.runtime.capturing(x)
    entry = slots.fresh(None if slot is None else int(slot), sources, program, constants, capturing)
    items = entry.program.chain
    check(x, sources, items[0].in_features if isinstance(items[0], LinearSpec) else items[0].in_channels)
    entry.pinned = entry.pinned or capturing
    return _run(entry.for_dtype(x.dtype, capturing), x, entry.program.layout == "follow_input")


def chain_cached(x: Tensor, slot: Tensor) -> Tensor:
    """``mobilenet_ext::chain_cached`` on a GPU."""
    from mobilenet_ext.backends.gpu import runtime, slots
    from mobilenet_ext.spec import LinearSpec

    capturing = runtime.runtime.capturing(x)
    entry = slots.trusted(int(slot))
    items = entry.program.chain
    check(x, entry.stamp.tensors, items[0].in_features if isinstance(items[0], LinearSpec) else items[0].in_channels)
    entry.pinned = entry.pinned or capturing
    return _run(entry.for_dtype(x.dtype, capturing), x, entry.program.layout == "follow_input")


def _run(packed: list[PackedItem], x: Tensor, follow_input: bool) -> Tensor:
    from mobilenet_ext.backends.gpu.runtime import run_packed

    # The operator stands below autograd and autocast: nothing may be recorded, and no cast may be added.
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        return run_packed(packed, x.detach(), follow_input)


for _name, _function in (("chain", chain), ("chain_grad", chain), ("chain_cached", chain_cached)):
    _library.impl(_name, _function, "CUDA")
