"""The native CPU kernels: whole blocks, single convolutions and classifiers in float32."""

from __future__ import annotations

import torch

from mobilenet_ext._library import native
from mobilenet_ext.spec import ChainItem

name = "cpu"
description = "fused float32 kernels for x86-64 and aarch64"


def machine_reason() -> str | None:
    """Why PyTorch is the better choice on this machine, or None; scalar kernels run only where somebody chose them."""
    if native.isa() != "scalar" or native.isa_is_capped():
        return None
    vector = ", ".join(isa["name"] for isa in native.isas() if isa["name"] != "scalar")
    return f"this CPU has none of the vector instruction sets that the kernels are written for ({vector})"


def unsupported(spec: ChainItem, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the CPU kernels cannot run ``spec``, or None; every spec is within their limits."""
    if (reason := machine_reason()) is not None:
        return reason
    if device.type != "cpu":
        return f"the tensors are on {device}; the CPU kernels need cpu"
    if dtype != torch.float32:
        return f"the dtype is {dtype}; the CPU kernels need torch.float32"
    return None
