"""Whether PyTorch may use TF32 for fp32, read so that neither of its two ways of setting it is an error.

Where ``fp32_precision`` exists, reading ``allow_tf32`` after the former was set raises RuntimeError.
"""

from __future__ import annotations

from typing import Any

import torch


def _allowed(new: Any, old: Any) -> bool:
    precision = getattr(new, "fp32_precision", None)
    return bool(old.allow_tf32) if precision is None else precision == "tf32"


def matmul_tf32() -> bool:
    """Matrix products; off unless the caller asked for it."""
    return _allowed(torch.backends.cuda.matmul, torch.backends.cuda.matmul)


def conv_tf32() -> bool:
    """cuDNN's convolutions, for which it is on by default."""
    return _allowed(getattr(torch.backends.cudnn, "conv", None), torch.backends.cudnn)


def some_tf32(dtype: torch.dtype) -> bool:
    """Whether an item in ``dtype`` may have either: a candidate may leave some of its stages to PyTorch."""
    return dtype == torch.float32 and (matmul_tf32() or conv_tf32())


def tf32_switches(dtype: torch.dtype) -> str:
    """Which of the two may change products in ``dtype``: empty, or as a suffix of its name.  They are told apart since
    each is obeyed by other kernels.
    """
    if dtype != torch.float32:
        return ""
    names = {
        (True, True): "+tf32",
        (True, False): "+tf32 in products",
        (False, True): "+tf32 in convolutions",
    }
    return names.get((matmul_tf32(), conv_tf32()), "")
