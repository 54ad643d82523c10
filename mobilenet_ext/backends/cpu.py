"""The native CPU kernels: whole blocks, single convolutions and classifiers in float32."""

from __future__ import annotations

import torch

from mobilenet_ext.spec import ChainItem

name = "cpu"
description = "fused float32 kernels for x86-64 and aarch64"


def unsupported(spec: ChainItem, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the CPU kernels cannot run ``spec``, or None; every spec is within their limits."""
    if device.type != "cpu":
        return f"the tensors are on {device}; the CPU kernels need cpu"
    if dtype != torch.float32:
        return f"the dtype is {dtype}; the CPU kernels need torch.float32"
    return None
