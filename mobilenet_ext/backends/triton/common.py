"""What the Triton kernels share: activation, products, launches, and the geometry of a depthwise stage."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mobilenet_ext.backends.gpu.precision import matmul_tf32
from mobilenet_ext.spec import ACTIVATIONS, CLAMPS

INTERPRETED = bool(triton.knobs.runtime.interpret)  # TRITON_INTERPRET=1 when the kernels were imported
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_INT_MAX = 2**31 - 1


class Geometry(NamedTuple):
    """Where the taps of a depthwise stage lie, all in pixels; ``height`` and ``width`` are those of its output."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    top: int
    left: int
    height: int
    width: int


@triton.jit
def activate(value, ACT: tl.constexpr):
    """ReLU (1) and ReLU6 (2) by comparison, so that NaN passes as in PyTorch; ``tl.maximum`` would drop it."""
    if ACT >= 1:
        value = tl.where(value < 0.0, 0.0, value)
    if ACT == 2:
        value = tl.where(value > 6.0, 6.0, value)
    return value


@triton.jit
def product(a, b, acc, PRECISION: tl.constexpr, WIDE: tl.constexpr):
    """``a @ b + acc`` on the matrix units.

    WIDE casts the operands first: Triton's interpreter computes bf16 products wrongly (triton #11584).
    """
    if WIDE:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def finish(
    acc, scale, bias, channel, channel_in, shortcut, y, at, kept, ACT: tl.constexpr, RESIDUAL: tl.constexpr
):  # fmt: skip
    """Store ``act(acc * scale + bias)``, plus the shortcut if RESIDUAL, as (pixels, channels) at offsets ``at``."""
    a = tl.load(scale + channel, mask=channel_in, other=0.0)[None, :]
    b = tl.load(bias + channel, mask=channel_in, other=0.0)[None, :]
    acc = activate(acc * a + b, ACT)
    if RESIDUAL:
        acc += tl.load(shortcut + at, mask=kept, other=0.0).to(tl.float32)
    tl.store(y + at, acc.to(y.dtype.element_ty), mask=kept)


def precision(dtype: torch.dtype) -> str:
    """``tl.dot``'s input_precision: TF32 only where torch allows it for matrix products."""
    if dtype == torch.float32 and matmul_tf32() and not INTERPRETED:
        return "tf32"
    return "ieee"


def code(activation: str) -> int:
    """The kernels' ACT; ValueError for a name that is not in ``spec.CLAMPS``."""
    if activation not in CLAMPS:
        raise ValueError(f"activation is {activation!r}; allowed: {', '.join(CLAMPS)}")
    return ACTIVATIONS[activation]


def power_of_two(value: int, low: int, high: int) -> int:
    """The next power of two, within the limits."""
    return max(low, min(high, triton.next_power_of_2(value)))


def check_image(name: str, x: Tensor) -> None:
    """TypeError or ValueError unless ``x`` is 4-d, of a kernel's dtype, with images of fewer than 2^31 elements.

    The batch may be any size: offsets of images are 64 bits wide.
    """
    if x.dtype not in DTYPES:
        raise TypeError(f"{name} is {x.dtype}; allowed: torch.float32, torch.float16, torch.bfloat16")
    if x.dim() != 4:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; allowed: four dimensions (N, C, H, W)")
    if x.shape[1] * x.shape[2] * x.shape[3] > _INT_MAX:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; allowed: images of up to 2^31 - 1 elements")


def is_planar(x: Tensor) -> bool:
    """Whether results follow NCHW: where strides are ambiguous, NCHW wins, as in every other kernel of this package."""
    return x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last)


def pixels_last(x: Tensor) -> Tensor:
    """``x`` dense in channels_last order; a copy only where it is not."""
    return x.contiguous(memory_format=torch.channels_last)


def new_image(like: Tensor, channels: int, height: int, width: int, planar: bool = False) -> Tensor:
    """An uninitialised (N, channels, height, width) of the dtype and device of ``like``."""
    layout = torch.contiguous_format if planar else torch.channels_last
    shape = (like.shape[0], channels, height, width)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)


@contextlib.contextmanager
def on_device(x: Tensor) -> Iterator[None]:
    """Kernels go to the current stream of the device of ``x``."""
    if x.is_cuda and type(x) in (Tensor, torch.nn.Parameter):  # while tracing, tensors are of other classes
        with torch.cuda.device(x.device):
            yield
    else:
        yield


def launch(kernel: Any, programs: int, *args: Any, warps: int = 4, stages: int = 3, **constants: Any) -> None:
    """Launch ``programs`` instances along the one grid axis that may exceed 65535.

    The kernel goes through ``wrap_triton``, so that torch.compile sees it; the interpreter's kernels cannot.
    """
    if programs == 0:
        return
    if programs > _INT_MAX:
        raise ValueError(f"this call needs {programs} programs; allowed: up to 2^31 - 1, so split the batch")
    target: Callable[..., Any] = kernel[(programs,)] if INTERPRETED else torch.library.wrap_triton(kernel)[(programs,)]
    options = {} if INTERPRETED else {"num_warps": warps, "num_stages": stages}
    target(*args, **constants, **options)
