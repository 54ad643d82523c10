"""Memory formats of images, (N, C, H, W) tensors."""

from __future__ import annotations

import torch
from torch import Tensor


def memory_format_of(x: Tensor) -> torch.memory_format:
    """The memory format of ``x``; where its strides fit both, contiguous wins."""
    if x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
        return torch.contiguous_format
    return torch.channels_last


def channels_last(x: Tensor) -> Tensor:
    """``x`` itself where it is channels_last already."""
    return x.contiguous(memory_format=torch.channels_last)


def in_format_of(y: Tensor, x: Tensor) -> Tensor:
    """``y`` in the memory format of ``x``."""
    return y.contiguous(memory_format=memory_format_of(x))
