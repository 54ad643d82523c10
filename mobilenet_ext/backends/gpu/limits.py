"""What the GPU kernels take, in words; what they do not take runs in PyTorch inside the same operator."""

from __future__ import annotations

from collections.abc import Callable

import torch

from mobilenet_ext.spec import CLAMPS, BlockSpec, ChainItem, ConvSpec

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LARGEST_KERNEL = 7


def no_device() -> str:
    """Why torch has no GPU here, with the driver's own words where there are some."""
    if torch.version.cuda is None and torch.version.hip is None:
        return "this torch is built without CUDA"
    try:
        torch._C._cuda_init()
    except Exception as error:  # torch raises RuntimeError for no driver, an old driver and no device alike
        return f"torch sees no CUDA device: {str(error).splitlines()[0]}"
    return "torch sees no CUDA device"


def is_matrix_product(spec: ConvSpec) -> bool:
    """Whether a dense stage is a plain product over pixels: 1x1, stride 1, no padding."""
    plain = spec.kernel == (1, 1) and spec.stride == (1, 1) and spec.padding in ("same", (0, 0, 0, 0))
    return plain and not spec.depthwise


def stage_reason(spec: ConvSpec) -> str | None:
    """Why no GPU kernel runs this stage, or None."""
    if spec.activation not in CLAMPS:
        return f"the activation is {spec.activation}; the GPU kernels take {', '.join(CLAMPS)}"
    if spec.depthwise:
        if max(spec.kernel) > LARGEST_KERNEL:
            return (
                f"the depthwise kernel is {spec.kernel}; the GPU kernels take up to {LARGEST_KERNEL}x{LARGEST_KERNEL}"
            )
        return None
    if not is_matrix_product(spec):
        return f"dense {spec.kernel[0]}x{spec.kernel[1]} convolutions with stride or padding are left to PyTorch"
    return None


def tensors_reason(
    label: str,
    device: torch.device,
    dtype: torch.dtype,
    installed: Callable[[], str | None],
    device_reason: Callable[[int], str | None],
) -> str | None:
    """Why the ``label`` kernels do not take tensors of this device and dtype here, or None.

    ``installed()`` and ``device_reason(index)`` say what is missing on this machine and on one GPU, or None.
    """
    if device.type != "cuda":
        return f"the tensors are on {device}; the {label} kernels need cuda"
    if (reason := installed()) is not None:
        return reason
    if not torch.cuda.is_available():
        return no_device()
    if (reason := device_reason(device.index or 0)) is not None:
        return reason
    if dtype not in DTYPES:
        return f"the dtype is {dtype}; the {label} kernels need float32, float16 or bfloat16"
    return None


def unsupported(spec: ChainItem) -> str | None:
    """Why no GPU kernel runs any stage of ``spec``, or None where PyTorch runs its first stage at most."""
    if not isinstance(spec, BlockSpec):
        return "linear layers and pools are left to PyTorch"
    if spec.pool:
        return "a convolution with pool is left to PyTorch"
    if spec.squeezed:
        return "blocks with squeeze-and-excitation are left to PyTorch"
    if spec.residual_back:
        return "shortcuts over two items are left to PyTorch"
    reasons = {role: stage_reason(stage) for role, stage in spec.stages()}
    # A first stage without a kernel runs in PyTorch before the others; the others have to have one.
    if set(reasons) != {"expand"}:
        reasons.pop("expand", None)
    return next((reason for reason in reasons.values() if reason), None)
