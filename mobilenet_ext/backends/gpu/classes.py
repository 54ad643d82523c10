"""Shape classes: what a verdict on a kernel is for.

Within a class every kernel has the same tiles and splits (``csrc/cuda/plan.cpp`` rounds the batch up as well), so that
what was checked for one batch is the code that runs for the others.
"""

from __future__ import annotations

import torch

from mobilenet_ext.backends.gpu.precision import tf32_switches
from mobilenet_ext.spec import ChainItem, encode


def is_planar(x: torch.Tensor) -> bool:
    """Whether ``x`` counts as NCHW, which wins where strides are ambiguous."""
    return x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last)


def batch_class(batch: int) -> int:
    """The batch up to a power of two."""
    return 1 << max(0, int(batch) - 1).bit_length()


def class_of(x: torch.Tensor) -> str:
    """The class of an image: dtype with the TF32 switches, batch up to a power of two, exact size, layout."""
    dtype = str(x.dtype).removeprefix("torch.") + tf32_switches(x.dtype)
    layout = "nchw" if is_planar(x) else "nhwc"
    return f"{dtype}|n{batch_class(x.shape[0])}|{'x'.join(map(str, x.shape[1:]))}|{layout}"


def item_key(item: ChainItem) -> str:
    """An item as text, eps left out: it changes no kernel."""
    program, _ = encode((item,))
    return ".".join(map(str, program[3:]))


def shape_key(item: ChainItem, x: torch.Tensor) -> str:
    """The class that a verdict is for: the item, and the class of its image."""
    return f"{item_key(item)}|{class_of(x)}"
