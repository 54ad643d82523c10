"""The Triton kernels as operators ``mobilenet_ext_triton::*``, so that torch.compile sees through them.

``triton_op`` puts the launches themselves into the compiled graph: no break, no opaque call, and allocations that the
compiler plans.  The geometry of a depthwise stage is twelve integers: kernel, stride and dilation as pairs, then top,
left, output height, output width, and two that are reserved for the gradients' input size (0, 0 otherwise).
Eager code inside the package calls the Python functions directly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mobilenet_ext.backends.triton import batch_norm_backward as _batch_norm
from mobilenet_ext.backends.triton import block as _block
from mobilenet_ext.backends.triton import depthwise as _depthwise
from mobilenet_ext.backends.triton import depthwise_backward as _backward
from mobilenet_ext.backends.triton import pointwise as _pointwise
from mobilenet_ext.backends.triton.block import Stage
from mobilenet_ext.backends.triton.common import Geometry
from mobilenet_ext.spec import CLAMPS

_NAMES = list(CLAMPS)  # activations travel as their codes
_op = torch.library.triton_op


def flatten(geometry: Geometry, size: tuple[int, int] = (0, 0)) -> list[int]:
    """The integers that the operators take; ``size`` is the input's where a gradient needs it."""
    pairs = (*geometry.kernel, *geometry.stride, *geometry.dilation)
    return [*pairs, geometry.top, geometry.left, geometry.height, geometry.width, *size]


def _geometry(values: list[int]) -> Geometry:
    kh, kw, sh, sw, dh, dw, top, left, height, width = values[:10]
    return Geometry((kh, kw), (sh, sw), (dh, dw), top, left, height, width)


def _stage(tensors: list[Tensor], activations: list[int], index: int) -> Stage:
    weight, scale, bias = tensors[3 * index : 3 * index + 3]
    return Stage(weight, scale, bias, _NAMES[activations[index]])


@_op("mobilenet_ext_triton::depthwise", mutates_args=())
def depthwise(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, geometry: list[int], activation: int) -> Tensor:
    return _depthwise.depthwise(x, weight, scale, bias, _geometry(geometry), _NAMES[activation])


@_op("mobilenet_ext_triton::pointwise", mutates_args=())
def pointwise(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, activation: int, residual: Tensor | None
) -> Tensor:
    return _pointwise.pointwise(x, weight, scale, bias, _NAMES[activation], residual)


@_op("mobilenet_ext_triton::depthwise_project", mutates_args=())
def depthwise_project(
    x: Tensor, stages: list[Tensor], activations: list[int], geometry: list[int], residual: Tensor | None
) -> Tensor:
    first, last = _stage(stages, activations, 0), _stage(stages, activations, 1)
    return _block.depthwise_project(x, first, last, _geometry(geometry), residual)


@_op("mobilenet_ext_triton::inverted_residual", mutates_args=())
def inverted_residual(
    x: Tensor, stages: list[Tensor], activations: list[int], geometry: list[int], residual: bool
) -> Tensor:
    expand, middle, project = (_stage(stages, activations, i) for i in range(3))
    return _block.inverted_residual(x, expand, middle, project, _geometry(geometry), residual)


@_op("mobilenet_ext_triton::depthwise_backward_data", mutates_args=())
def depthwise_backward_data(dy: Tensor, weight: Tensor, geometry: list[int]) -> Tensor:
    return _backward.backward_data(dy, weight, _geometry(geometry), geometry[10], geometry[11])


@_op("mobilenet_ext_triton::depthwise_backward_weight", mutates_args=())
def depthwise_backward_weight(x: Tensor, dy: Tensor, geometry: list[int]) -> Tensor:
    return _backward.backward_weight(x, dy, _geometry(geometry))


@_op("mobilenet_ext_triton::batch_norm_act_backward", mutates_args=())
def batch_norm_act_backward(
    v: Tensor, dy: Tensor, vectors: list[Tensor], activation: int, batch_statistics: bool
) -> tuple[Tensor, Tensor, Tensor]:
    mean, rstd, weight, bias = vectors
    dv, dweight, dbias = _batch_norm.batch_norm_act_backward(
        v, dy, mean, rstd, weight, bias, _NAMES[activation], batch_statistics
    )
    return dv, dweight.clone(), dbias.clone()
