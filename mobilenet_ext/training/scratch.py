"""Buffers that a thread's training calls write to again and again.

Hidden tensors of some megabytes come and go in every block.  Fresh memory for each would cost a page fault per 4 kB,
which takes longer than the arithmetic of a pass.
"""

from __future__ import annotations

import math
import threading

import torch
from torch import Tensor

_KEPT_BYTES = 64 << 20  # larger buffers are given back


class _Buffers(threading.local):
    def __init__(self) -> None:
        self.found: dict[tuple[str, torch.dtype], Tensor] = {}


_buffers = _Buffers()


def scratch(name: str, like: Tensor, *shape: int) -> Tensor:
    """A contiguous tensor with arbitrary contents; valid until the thread asks for ``name`` again."""
    size = math.prod(shape)
    key = (name, like.dtype)
    buffer = _buffers.found.get(key)
    if buffer is None or buffer.numel() < size or buffer.is_inference() != torch.is_inference_mode_enabled():
        _buffers.found.pop(key, None)
        buffer = like.new_empty(size)
        if buffer.nbytes <= _KEPT_BYTES:
            _buffers.found[key] = buffer
    return buffer[:size].view(shape)


def scratch_image(name: str, like: Tensor, n: int, channels: int, height: int, width: int) -> Tensor:
    """The same as a channels_last image."""
    return scratch(name, like, n, height, width, channels).permute(0, 3, 1, 2)


def empty_image(like: Tensor, n: int, channels: int, height: int, width: int) -> Tensor:
    """Fresh memory, channels_last."""
    return like.new_empty((n, height, width, channels)).permute(0, 3, 1, 2)
