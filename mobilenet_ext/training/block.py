"""One block in training, forward: expand, depthwise, project, each with its BatchNorm and activation, any missing.

The hidden tensor between expand and depthwise never exists as a whole: both directions go through the batch some images
at a time, few enough for their hidden values to stay in the last cache.  The pointwise products are the
native kernels too: torch's ``mm`` takes another order of sums at another number of threads.

With batch statistics the input, the depthwise result v and the project result p are kept, BatchNorm not yet applied.
With every BatchNorm frozen only the input is, and the backward makes the rest again.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mobilenet_ext.backends import aten
from mobilenet_ext.memory_format import channels_last
from mobilenet_ext.spec import BlockSpec, ConvSpec
from mobilenet_ext.training import passes
from mobilenet_ext.training.norm import Norm
from mobilenet_ext.training.passes import Geometry, image_of, matrix
from mobilenet_ext.training.scratch import empty_image, scratch

CHUNK_BYTES = 6 << 20  # of hidden values, or of patches, at a time
Tensors = Mapping[str, Tensor]
Stats = tuple[Tensor, Tensor]


def geometry_of(spec: ConvSpec, height: int, width: int) -> Geometry:
    """Sizes of a depthwise stage on an input of this size."""
    pads = aten.paddings(spec, height, width)
    return Geometry(spec.kernel, spec.stride, spec.dilation, pads, spec.output_size(height, width))


def is_pointwise(spec: ConvSpec) -> bool:
    return spec.kernel == (1, 1) and spec.stride == (1, 1) and spec.padding in ("same", (0, 0, 0, 0))


def is_first_convolution(spec: ConvSpec) -> bool:
    """A larger convolution of few channels, which is made as a product with the image's patches; so says
    ``StageDesc::by_pixels`` in csrc/cpu/program.h."""
    return spec.kernel != (1, 1) and spec.in_channels < 8


@dataclass
class Stage:
    """One stage with its tensors; ``norm`` once its statistics are known."""

    spec: ConvSpec
    tensors: Tensors
    batch: bool
    norm: Norm | None = None

    def close(self, stats: Stats | None) -> None:
        self.norm = Norm.of(self.spec, self.tensors, stats if self.batch else None)

    @property
    def done(self) -> Norm:
        assert self.norm is not None
        return self.norm

    @functools.cached_property
    def weight(self) -> Tensor:
        """(out, in) of a pointwise stage, else as it is; contiguous."""
        weight = self.tensors["weight"].detach()
        return weight.reshape(weight.shape[0], -1).contiguous() if is_pointwise(self.spec) else weight.contiguous()


class Block:
    """A block on one input: ``x`` is channels_last, ``stages`` the tensors of each stage, ``batch`` their modes."""

    def __init__(self, block: BlockSpec, x: Tensor, stages: Sequence[Tensors], batch: Sequence[bool]) -> None:
        self.block, self.x = block, x
        found: dict[str, Stage] = {}
        for (role, spec), tensors, is_batch in zip(block.stages(), stages, batch, strict=True):
            found[role] = Stage(spec, tensors, is_batch)
        self.stages = found
        self.expand, self.dw, self.project = (found.get(role) for role in ("expand", "depthwise", "project"))
        self.last = list(found.values())[-1]
        self.n, _, self.height, self.width = x.shape
        size = (self.height, self.width)
        self.hidden_size = self.expand.spec.output_size(*size) if self.expand else size
        self.geometry = geometry_of(self.dw.spec, *self.hidden_size) if self.dw else None
        self.out_size = self.geometry.out if self.geometry else self.hidden_size

    # --- parts of the batch -----------------------------------------------------------------------------------------

    def chunks(self) -> Iterator[slice]:
        """Images at a time; all where the expand stage is not a matrix product, or there is none."""
        count = self.n
        if self.expand is not None and self.dw is not None and is_pointwise(self.expand.spec):
            pixels = self.hidden_size[0] * self.hidden_size[1]
            image = pixels * self.expand.spec.out_channels * self.x.element_size()
            count = max(1, CHUNK_BYTES // max(1, image))
        for first in range(0, self.n, max(1, count)):
            yield slice(first, min(self.n, first + count))

    def expanded(self, part: slice, keep: bool = False) -> Tensor:
        """The expand convolution of some images, bare, channels_last; in scratch memory unless it is to ``keep``."""
        assert self.expand is not None
        x = self.x[part]
        if is_pointwise(self.expand.spec):
            rows = matrix(x)
            shape = (rows.shape[0], self.expand.spec.out_channels)
            out = x.new_empty(shape) if keep else scratch("expanded", x, *shape)
            return image_of(passes.product(rows, self.expand.weight, True, out), x.shape[0], *self.hidden_size)
        spec, weight = self.expand.spec, self.expand.weight
        if x.dtype == torch.float32 and is_first_convolution(spec):  # the bits of the native kernels
            rows = passes.patches(x, spec, aten.paddings(spec, self.height, self.width), self.hidden_size)
            out = x.new_empty((rows.shape[0], spec.out_channels))
            passes.product(rows, weight.permute(0, 2, 3, 1).reshape(spec.out_channels, -1), True, out)
            return image_of(out, x.shape[0], *self.hidden_size)
        return channels_last(aten.convolve(spec, x, weight, None))

    def convolve(self, hidden: Tensor, wants_moments: bool, out: Tensor) -> Stats:
        """The depthwise convolution, bare, of the bare expand convolution (of the input where there is none)."""
        assert self.dw is not None
        assert self.geometry is not None
        before = self.expand.done.affine if self.expand is not None else None
        return passes.depthwise(hidden, self.dw.weight, None, before, self.geometry, wants_moments, out)

    def activated(self, v: Tensor) -> Tensor:
        """The depthwise result of some images after BatchNorm and activation, a matrix in scratch memory."""
        assert self.dw is not None
        rows = matrix(v)
        return passes.apply(rows, self.dw.done.affine, scratch("activated", rows, *rows.shape))

    # --- forward ----------------------------------------------------------------------------------------------------

    def forward(self) -> tuple[Tensor, Tensor, Tensor, list[Stats]]:
        """y, v, the last bare convolution (empty where it is v), the statistics of the stages with batch ones."""
        stats: list[Stats] = []
        v = self.x.new_empty(0)
        if self.expand is None and self.dw is None:
            raise ValueError("a block begins with an expand or a depthwise stage")
        if self.dw is None:
            last = self.expanded(slice(0, self.n), keep=True)
            self._close(self.last, passes.moments(matrix(last)) if self.last.batch else None, stats)
            return self._finish(last), v, last, stats
        v = self._hidden(stats)
        if self.project is None:
            return self._finish(v), v, self.x.new_empty(0), stats
        rows = v.new_empty((matrix(v).shape[0], self.project.spec.out_channels))
        passes.product(matrix(v), self.project.weight, True, rows, self.dw.done.affine)
        p = image_of(rows, self.n, *self.out_size)
        self._close(self.project, passes.moments(rows) if self.project.batch else None, stats)
        return self._finish(p), v, p, stats

    def _close(self, stage: Stage, found: Stats | None, stats: list[Stats]) -> None:
        stage.close(found)
        if found is not None:
            stats.append(found)

    def _rows(self, rows: Tensor, part: slice) -> Tensor:
        pixels = self.out_size[0] * self.out_size[1]
        return rows[part.start * pixels : part.stop * pixels]

    def _hidden(self, stats: list[Stats]) -> Tensor:
        """The depthwise result of the whole batch, with the statistics of both stages."""
        assert self.dw is not None
        parts = list(self.chunks())
        kept: Tensor | None = self.x if self.expand is None else None
        if self.expand is not None:
            whole: tuple[int, Tensor, Tensor] | None = None
            if self.expand.batch:
                for part in parts:
                    u = self.expanded(part)
                    kept = u if len(parts) == 1 else None
                    found = (matrix(u).shape[0], *passes.moments(matrix(u)))
                    whole = found if whole is None else passes.merge(whole, found)
            self._close(self.expand, whole[1:] if whole else None, stats)
        v = empty_image(self.x, self.n, self.dw.spec.out_channels, *self.out_size)
        total: tuple[int, Tensor, Tensor] | None = None
        for part in parts:
            u = self.expanded(part) if kept is None else kept
            mean, var = self.convolve(u, self.dw.batch, v[part])
            if self.dw.batch:
                found = (u.shape[0] * self.out_size[0] * self.out_size[1], mean, var)
                total = found if total is None else passes.merge(total, found)
        self._close(self.dw, total[1:] if total else None, stats)
        return v

    def _finish(self, last: Tensor) -> Tensor:
        residual = matrix(self.x) if self.block.residual else None
        rows = matrix(last)
        y = passes.apply(rows, self.last.done.affine, torch.empty_like(rows), residual)
        return image_of(y, self.n, *self.out_size)
