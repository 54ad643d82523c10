"""The CUDA C++ kernels: built where nvcc is found at install, loaded where torch has CUDA, for NVIDIA GPUs.

They take square depthwise kernels of 3 or 5 without dilation, at stride 1 or 2; Triton takes the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from mobilenet_ext.backends.gpu.limits import stage_reason
from mobilenet_ext.backends.gpu.packing import PackedStage
from mobilenet_ext.backends.gpu.precision import matmul_tf32
from mobilenet_ext.spec import ACTIVATIONS, BlockSpec, ChainItem, ConvSpec

name = "cuda"
description = "CUDA C++ kernels in fp32, fp16 and bf16 for NVIDIA GPUs"
LIBRARY = Path(__file__).parent.parent / "libmobilenet_ext_cuda.so"
OLDEST_CAPABILITY = (8, 0)
_ALIGNMENT = 16  # bytes, of the image of a whole block
LARGEST_OUTPUT = 320  # channels of a whole block: its sums stay in registers


@cache
def installed() -> str | None:
    """Why the library is not there or does not load, or None; the operators are registered on the way."""
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    if not LIBRARY.is_file():
        return "the CUDA C++ kernels were not built; install with nvcc on the PATH or MOBILENET_EXT_CUDA=1"
    try:
        torch.ops.load_library(str(LIBRARY))
    except OSError as error:
        return f"{LIBRARY.name} does not load with torch {torch.__version__}: {error}"
    return None


@cache
def device_reason(index: int) -> str | None:
    """Why GPU number ``index`` cannot run the kernels, or None."""
    if (reason := installed()) is not None:
        return reason
    capability = torch.cuda.get_device_capability(index)
    if capability < OLDEST_CAPABILITY:
        found, needed = ".".join(map(str, capability)), ".".join(map(str, OLDEST_CAPABILITY))
        return f"the GPU has compute capability {found}; the CUDA kernels need {needed} or newer"
    try:
        torch.ops.mobilenet_ext_cuda.probe(index)
    except RuntimeError as error:  # no code for this architecture, or a driver older than the build
        return f"the CUDA kernels do not start on this GPU: {str(error).splitlines()[0]}"
    return None


def depthwise_reason(spec: ConvSpec) -> str | None:
    """Why the CUDA kernels do not take a depthwise stage, or None."""
    if spec.kernel not in ((3, 3), (5, 5)) or spec.stride not in ((1, 1), (2, 2)) or spec.dilation != (1, 1):
        geometry = f"kernel {spec.kernel}, stride {spec.stride}, dilation {spec.dilation}"
        return f"the depthwise stage has {geometry}; the CUDA kernels take 3x3 and 5x5 at stride 1 and 2"
    return None


def unsupported(spec: ChainItem, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the CUDA kernels cannot run ``spec``, or None."""
    from mobilenet_ext.backends.gpu import limits

    if (reason := limits.tensors_reason("CUDA", device, dtype, installed, device_reason)) is not None:
        return reason
    if not isinstance(spec, BlockSpec) or spec.depthwise is None:
        return "the CUDA kernels are for depthwise stages and whole inverted residuals"
    return limits.unsupported(spec) or depthwise_reason(spec.depthwise)


def runs_depthwise(stages: Mapping[str, PackedStage], x: Tensor) -> bool:
    """Whether the depthwise stage of an item can run here; any size, channel count and alignment."""
    return "depthwise" in stages and depthwise_reason(stages["depthwise"].spec) is None


def runs_block(stages: Mapping[str, PackedStage], x: Tensor) -> bool:
    """Whether the whole-block kernel takes an item: expand, depthwise and project, 16-byte rows, sums in registers."""
    if set(stages) != {"expand", "depthwise", "project"} or depthwise_reason(stages["depthwise"].spec) is not None:
        return False
    expand, project = stages["expand"].spec, stages["project"].spec
    widths = (expand.in_channels, expand.out_channels, project.out_channels)
    return (
        stage_reason(expand) is None
        and stages["depthwise"].spec.kernel == (3, 3)
        and all(width % 8 == 0 for width in widths)
        and project.out_channels <= LARGEST_OUTPUT
    )


def _geometry(spec: ConvSpec, padding: tuple[int, int], size: tuple[int, int]) -> list[int]:
    return [spec.kernel[0], spec.stride[0], *padding, *size]


def depthwise(x: Tensor, stage: PackedStage, padding: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """``act(depthwise(x) * scale + shift)``.

    ``x`` is (N, C, H, W), copied unless channels_last; ``padding`` is (top, left) and ``size`` the output's.
    Returns: (N, C, H', W') channels_last in the dtype of ``x``.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    geometry = _geometry(stage.spec, padding, size)
    act = ACTIVATIONS[stage.spec.activation]
    return torch.ops.mobilenet_ext_cuda.depthwise(x, stage.weight, stage.scale, stage.shift, geometry, act)


def inverted_residual(
    x: Tensor, stages: Mapping[str, PackedStage], padding: tuple[int, int], size: tuple[int, int], residual: bool
) -> Tensor:
    """The whole block in one kernel, the hidden tensor in shared memory; arguments as of :func:`depthwise`.

    Returns: (N, C', H', W') channels_last in the dtype of ``x``.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    if x.data_ptr() % _ALIGNMENT:  # a view may begin anywhere; its clone does not
        x = x.clone()
    order = [stages[role] for role in ("expand", "depthwise", "project")]
    tensors = [tensor for stage in order for tensor in (stage.weight, stage.scale, stage.shift)]
    acts = [ACTIVATIONS[stage.spec.activation] for stage in order]
    geometry = _geometry(stages["depthwise"].spec, padding, size)
    return torch.ops.mobilenet_ext_cuda.inverted_residual(x, tensors, geometry, acts, residual, matmul_tf32())


def depthwise_backward_data(
    dy: Tensor, weight: Tensor, stride: int, padding: tuple[int, int], size: tuple[int, int]
) -> Tensor:
    """The gradient with respect to the input of ``size`` pixels; ``weight`` is (k, k, C) in the dtype of ``dy``.

    Returns: (N, C, H, W) channels_last in the dtype of ``dy`` (N, C, H', W').
    """
    dy = dy.contiguous(memory_format=torch.channels_last)
    geometry = [weight.shape[0], stride, *padding, *size]
    return torch.ops.mobilenet_ext_cuda.depthwise_backward_data(dy, weight, geometry)


def depthwise_backward_weight(x: Tensor, dy: Tensor, kernel: int, stride: int, padding: tuple[int, int]) -> Tensor:
    """The gradient with respect to the weight, (k, k, C) fp32, the same bits at every call."""
    x, dy = (t.contiguous(memory_format=torch.channels_last) for t in (x, dy))
    geometry = [kernel, stride, *padding, dy.shape[2], dy.shape[3]]
    return torch.ops.mobilenet_ext_cuda.depthwise_backward_weight(x, dy, geometry)
