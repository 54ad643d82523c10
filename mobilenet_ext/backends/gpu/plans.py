"""The ways in which one item of a chain can run on a GPU, best first by backend: cuda, then triton.

A candidate is a backend, a plan and a configuration: which kernels, and how large their tiles are.  PyTorch's own
operators are the baseline and always there; they also run the stages that no kernel takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mobilenet_ext.backends import aten
from mobilenet_ext.backends.gpu.classes import batch_class
from mobilenet_ext.backends.gpu.limits import stage_reason, unsupported
from mobilenet_ext.backends.gpu.packing import PackedItem, PackedStage
from mobilenet_ext.spec import BlockSpec, ConvSpec, LinearSpec, PoolSpec

RECOMPUTE_PIXELS = 1 << 16  # above this the whole block by recompute is not even tried
BASELINE = "aten"
_IMAGES = 2  # compared with float64 from the start of the batch, besides the last
Run = Callable[..., Any]  # of a packed item and its image to its result, or of a gradient's job to its results


@dataclass(frozen=True)
class Candidate:
    """``name`` is backend.plan:configuration, as reports and the cache of choices print it."""

    name: str
    run: Run

    @property
    def backend(self) -> str:
        return self.name.partition(".")[0]


def compared_images(x: Tensor) -> Tensor:
    """Indices of the images that a check compares: the results of a kernel do not depend on the place in the batch."""
    n = x.shape[0]
    picked = sorted({*range(min(n, _IMAGES)), n - 1})
    return torch.tensor(picked, device=x.device)


def run_aten(packed: PackedItem, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
    """The item in PyTorch's operators; (N, C, H, W), or flat after a pool or a linear item.

    ``shortcut`` is the input of the item before, for a block with ``residual_back``.
    """
    if isinstance(packed.item, LinearSpec):
        return aten.run_linear(packed.item, x, packed.tensors[0])
    if isinstance(packed.item, PoolSpec):
        return x.mean((2, 3))
    return aten.run_block(packed.item, x, packed.tensors, shortcut=shortcut)


def candidates(packed: PackedItem, x: Tensor, backends: tuple[str, ...]) -> list[Candidate]:
    """Everything but the baseline that can run ``packed`` on ``x``, in order of preference."""
    item = packed.item
    if not isinstance(item, BlockSpec) or unsupported(item) is not None:
        return []
    found: list[Candidate] = []
    if "cuda" in backends:
        found += _cuda_candidates(packed, item, x)
    if "triton" in backends:
        found += _triton_candidates(packed, item, x)
    return found


def _triton_candidates(packed: PackedItem, item: BlockSpec, x: Tensor) -> Iterator[Candidate]:
    from mobilenet_ext.backends.triton import block, depthwise, pointwise

    stages = packed.stages
    expand, middle, project = (stages.get(role) for role in ("expand", "depthwise", "project"))
    plain_expand = expand is None or stage_reason(expand.spec) is None
    pixels = batch_class(x.shape[0]) * x.shape[2] * x.shape[3]
    if (
        expand is not None
        and middle is not None
        and project is not None
        and plain_expand
        and pixels <= RECOMPUTE_PIXELS
    ):
        for config in range(len(block.BLOCK_CONFIGS)):
            yield Candidate(f"triton.block:{config}", partial(_triton_block, config))
    if middle is not None and project is not None:
        for config in range(len(block.PROJECT_CONFIGS)):
            yield Candidate(f"triton.depthwise_project:{config}", partial(_triton_pair, config))
    for config in range(max(len(pointwise.CONFIGS), len(depthwise.CONFIGS_NHWC))):
        yield Candidate(f"triton.stages:{config}", partial(_triton_stages, config))


def _cuda_candidates(packed: PackedItem, item: BlockSpec, x: Tensor) -> Iterator[Candidate]:
    from mobilenet_ext.backends import cuda

    if cuda.runs_block(packed.stages, x):
        yield Candidate("cuda.block:0", _cuda_block)
    if cuda.runs_depthwise(packed.stages, x):
        yield Candidate("cuda.stages:0", _cuda_stages)


def _geometry(spec: ConvSpec, height: int, width: int) -> tuple[int, int, int, int]:
    """Top and left padding, output height and width."""
    top, _, left, _ = aten.paddings(spec, height, width)
    return top, left, *spec.output_size(height, width)


def triton_geometry(spec: ConvSpec, x: Tensor):  # type: ignore[no-untyped-def]
    """The Triton kernels' Geometry of a depthwise stage on ``x``."""
    from mobilenet_ext.backends.triton.common import Geometry

    return Geometry(spec.kernel, spec.stride, spec.dilation, *_geometry(spec, x.shape[2], x.shape[3]))


def _triton_stage(stage: PackedStage):  # type: ignore[no-untyped-def]
    from mobilenet_ext.backends.triton.block import Stage

    assert stage.weight is not None
    return Stage(stage.weight, stage.scale, stage.shift, stage.spec.activation)


def _residual(packed: PackedItem, x: Tensor) -> Tensor | None:
    return x if isinstance(packed.item, BlockSpec) and packed.item.residual else None


def _run_expand(config: int, packed: PackedItem, x: Tensor, residual: Tensor | None = None) -> Tensor:
    from mobilenet_ext.backends.triton.pointwise import pointwise

    stage = packed.stages["expand"]
    if stage_reason(stage.spec) is not None:
        return aten.run_stage(stage.spec, x, packed.tensors[0])
    assert stage.weight is not None
    return pointwise(x, stage.weight, stage.scale, stage.shift, stage.spec.activation, residual, config)


def _triton_block(config: int, packed: PackedItem, x: Tensor) -> Tensor:
    from mobilenet_ext.backends.triton.block import inverted_residual

    expand, middle, project = (_triton_stage(packed.stages[role]) for role in ("expand", "depthwise", "project"))
    geometry = triton_geometry(packed.stages["depthwise"].spec, x)
    return inverted_residual(x, expand, middle, project, geometry, _residual(packed, x) is not None, config)


def _triton_pair(config: int, packed: PackedItem, x: Tensor) -> Tensor:
    from mobilenet_ext.backends.triton.block import depthwise_project

    y = _run_expand(config, packed, x) if "expand" in packed.stages else x
    middle, project = packed.stages["depthwise"], packed.stages["project"]
    geometry = triton_geometry(middle.spec, y)
    return depthwise_project(y, _triton_stage(middle), _triton_stage(project), geometry, _residual(packed, x), config)


def _triton_stages(config: int, packed: PackedItem, x: Tensor) -> Tensor:
    from mobilenet_ext.backends.triton.depthwise import depthwise
    from mobilenet_ext.backends.triton.pointwise import pointwise

    y, residual = x, _residual(packed, x)
    if "expand" in packed.stages:
        last = len(packed.stages) == 1
        y = _run_expand(config, packed, y, residual if last else None)
        if last and stage_reason(packed.stages["expand"].spec) is not None and residual is not None:
            y = y + residual
    if (stage := packed.stages.get("depthwise")) is not None:
        assert stage.weight is not None
        geometry = triton_geometry(stage.spec, y)
        y = depthwise(y, stage.weight, stage.scale, stage.shift, geometry, stage.spec.activation, config)
    if (stage := packed.stages.get("project")) is not None:
        assert stage.weight is not None
        return pointwise(y, stage.weight, stage.scale, stage.shift, stage.spec.activation, residual, config)
    return y + residual if residual is not None and "depthwise" in packed.stages else y


def _cuda_block(packed: PackedItem, x: Tensor) -> Tensor:
    from mobilenet_ext.backends import cuda

    middle = packed.stages["depthwise"].spec
    top, left, height, width = _geometry(middle, x.shape[2], x.shape[3])
    return cuda.inverted_residual(x, packed.stages, (top, left), (height, width), _residual(packed, x) is not None)


def _cuda_stages(packed: PackedItem, x: Tensor) -> Tensor:
    """The depthwise stage in CUDA C++, the products in PyTorch."""
    from mobilenet_ext.backends import cuda

    y, residual = x, _residual(packed, x)
    assert isinstance(packed.item, BlockSpec)
    for (role, spec), tensors in zip(packed.item.stages(), packed.tensors, strict=True):
        if role == "depthwise":
            top, left, height, width = _geometry(spec, y.shape[2], y.shape[3])
            y = cuda.depthwise(y, packed.stages[role], (top, left), (height, width))
        else:
            y = aten.run_stage(spec, y, tensors)
    return y if residual is None else y + residual
