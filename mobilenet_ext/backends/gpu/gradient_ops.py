"""The gradients of a frozen block as operators ``mobilenet_ext_gpu::*``, opaque to ``torch.compile``.

They run on any device, so that tests need no GPU; the backward of a chain calls them for CUDA tensors.  First
derivatives only: a backward that is to be differentiated again uses PyTorch's operators.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mobilenet_ext.backends.gpu.gradients import BatchNormJob, DepthwiseGeometry, DepthwiseJob
from mobilenet_ext.spec import CLAMPS


def _run(job: DepthwiseJob | BatchNormJob) -> tuple[Tensor, ...]:
    from mobilenet_ext.backends.gpu import runtime

    return runtime.runtime.run_gradient(job)


def _exact(y: Tensor) -> Tensor:
    from mobilenet_ext.backends.gpu.runtime import exact_strides

    return exact_strides(y.contiguous(memory_format=torch.channels_last), False)


@torch.library.custom_op("mobilenet_ext_gpu::depthwise_backward", mutates_args=())
def depthwise_backward(g: Tensor, x: Tensor, weight: Tensor, geometry: list[int]) -> tuple[Tensor, Tensor]:
    """The gradients of ``conv2d(x, weight, groups=C)`` with respect to x and weight.

    g (N, C, H', W'), x (N, C, H, W), weight (C, 1, kH, kW), one dtype; ``geometry``: stride, padding and dilation as
    pairs.  Returns: dx (channels_last) and dw (contiguous), in the shapes and dtype of x and weight.
    """
    sh, sw, top, left, dh, dw = geometry
    where = DepthwiseGeometry((sh, sw), (top, left), (dh, dw))
    (dx,) = _run(DepthwiseJob("depthwise_input", g, x, weight, where))
    (dweight,) = _run(DepthwiseJob("depthwise_weight", g, x, weight, where))
    return _exact(dx), dweight.contiguous()


@torch.library.register_fake("mobilenet_ext_gpu::depthwise_backward")
def _fake_depthwise(g: Tensor, x: Tensor, weight: Tensor, geometry: list[int]) -> tuple[Tensor, Tensor]:
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    return dx, weight.new_empty(weight.shape)


@torch.library.custom_op("mobilenet_ext_gpu::norm_backward", mutates_args=())
def norm_backward(
    g: Tensor, v: Tensor, before: Tensor, vectors: list[Tensor], activation: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of ``act(before)``, ``before = (v - mean) * rstd * weight + bias``, all constant but v.

    Images are (N, C, H, W) of one dtype; ``vectors`` are mean, rstd, weight and bias (C,); ``activation`` is a place in
    ``CLAMPS``.  Returns: dv (channels_last), dweight and dbias in the dtype of weight.
    """
    mean, rstd, weight, bias = vectors
    dv, dweight, dbias = _run(BatchNormJob(g, v, before, mean, rstd, weight, bias, CLAMPS[activation]))
    return _exact(dv), dweight, dbias


@torch.library.register_fake("mobilenet_ext_gpu::norm_backward")
def _fake_norm(
    g: Tensor, v: Tensor, before: Tensor, vectors: list[Tensor], activation: int
) -> tuple[Tensor, Tensor, Tensor]:
    dv = torch.empty(v.shape, dtype=v.dtype, device=v.device, memory_format=torch.channels_last)
    return dv, vectors[2].new_empty(v.shape[1]), vectors[2].new_empty(v.shape[1])
