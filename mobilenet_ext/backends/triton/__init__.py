"""Triton kernels for NVIDIA and AMD GPUs: no build step, so they serve every machine that has Triton and a GPU.

The kernels are imported on first use; importing this module costs nothing and needs no Triton.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch

from mobilenet_ext.spec import ChainItem

name = "triton"
description = "Triton kernels in fp32, fp16 and bf16 for NVIDIA and AMD GPUs"
OLDEST_CAPABILITY = (8, 0)


@cache
def installed() -> str | None:
    """Why Triton cannot be imported, or None."""
    if find_spec("triton") is None:
        return "Triton is not installed; `pip install triton` brings it"
    try:
        import triton.language  # noqa: F401
    except Exception as error:  # a broken Triton raises whatever its native part does
        return f"Triton does not import: {error}"
    return None


@cache
def device_reason(index: int) -> str | None:
    """Why this GPU cannot run the kernels, or None."""
    if torch.version.hip is not None:
        return None
    capability = torch.cuda.get_device_capability(index)
    if capability < OLDEST_CAPABILITY:
        found, needed = ".".join(map(str, capability)), ".".join(map(str, OLDEST_CAPABILITY))
        return f"the GPU has compute capability {found}; the Triton kernels need {needed} or newer"
    return None


def unsupported(spec: ChainItem, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why Triton kernels cannot run ``spec``, or None."""
    from mobilenet_ext.backends.gpu import limits

    reason = limits.tensors_reason("Triton", device, dtype, installed, device_reason)
    return limits.unsupported(spec) if reason is None else reason
