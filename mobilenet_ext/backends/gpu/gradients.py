"""The gradients of a frozen block on a GPU: what is asked, PyTorch's answer, and the kernels that can give it.

Each is one job with its own check and verdict (:mod:`~mobilenet_ext.backends.gpu.runtime`), since the fastest kernel of
one says nothing of another.  Results are those of PyTorch's operators, in the same dtypes and shapes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mobilenet_ext.backends.gpu.classes import class_of, is_planar
from mobilenet_ext.backends.gpu.limits import DTYPES, LARGEST_KERNEL
from mobilenet_ext.backends.gpu.plans import Candidate, compared_images
from mobilenet_ext.spec import CLAMPS

KINDS = ("depthwise_input", "depthwise_weight", "batch_norm")
_UPPER = {"none": math.inf, "relu": math.inf, "relu6": 6.0}
_SOME_IMAGES = 4  # of a batch are in float64 at a time
Results = tuple[Tensor, ...]


@dataclass(frozen=True)
class Expected:
    """One result in float64, the RMS error that PyTorch has, and how far each element may be off.

    ``images`` are the indices of those that the reference has of a result with one image each; None if it has it all.
    """

    reference: Tensor
    rms: float
    limit: Tensor
    images: Tensor | None = None


@dataclass(frozen=True)
class DepthwiseGeometry:
    """Of a depthwise convolution; ``padding`` is (top, left), as much at bottom and right."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]


@dataclass(frozen=True)
class DepthwiseJob:
    """A gradient of a depthwise convolution; x (N, C, H, W), weight (C, 1, kH, kW), g (N, C, H', W'), one dtype."""

    kind: str
    g: Tensor
    x: Tensor
    weight: Tensor
    geometry: DepthwiseGeometry

    @property
    def image(self) -> Tensor:
        return self.x

    @property
    def detail(self) -> str:
        (sh, sw), (top, left), (dh, dw) = self.geometry.stride, self.geometry.padding, self.geometry.dilation
        kh, kw = self.weight.shape[2:]
        return f"k{kh}x{kw}s{sh}x{sw}p{top}x{left}d{dh}x{dw}"

    def baseline(self) -> Results:
        return (self._torch(self.g, self.x, self.weight),)

    def _torch(self, g: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        wanted = 0 if self.kind == "depthwise_input" else 1
        where = self.geometry
        return torch.ops.aten.convolution_backward(
            g, x, weight, None, where.stride, where.padding, where.dilation, False, (0, 0), weight.shape[0],
            (wanted == 0, wanted == 1, False),
        )[wanted]  # fmt: skip

    def expected(self) -> list[Expected]:
        """In float64, never all images at once; K is the number of taps, or of output pixels."""
        (ours,) = self.baseline()
        if self.kind == "depthwise_input":
            index = compared_images(self.x)
            reference, magnitude = self._exact(self.g[index], self.x[index])
            terms = self.weight.shape[2] * self.weight.shape[3]
            return [_expected(reference, magnitude, terms, ours[index], images=index)]
        parts = [self._exact(g, x) for g, x in _groups(self.g, self.x)]
        reference, magnitude = (torch.stack(part).sum(0) for part in zip(*parts, strict=True))
        return [_expected(reference, magnitude, self.g.numel() // self.g.shape[1], ours)]

    def _exact(self, g: Tensor, x: Tensor) -> Results:
        g, x, weight = g.double(), x.double(), self.weight.double()
        return self._torch(g, x, weight), self._torch(g.abs(), x.abs(), weight.abs())


@dataclass(frozen=True)
class BatchNormJob:
    """The gradient of ``act((v - mean) * rstd * weight + bias)`` with mean and rstd constant.

    v and g are (N, C, H, W) of one dtype, the vectors (C,); ``before`` is PyTorch's value before the activation.
    Results: the gradients of v, weight and bias.
    """

    g: Tensor
    v: Tensor
    before: Tensor
    mean: Tensor
    rstd: Tensor
    weight: Tensor
    bias: Tensor
    activation: str
    kind: str = "batch_norm"

    @property
    def image(self) -> Tensor:
        return self.v

    @property
    def detail(self) -> str:
        return self.activation

    def baseline(self) -> Results:
        vectors = (self.mean, self.rstd, self.weight)
        return norm_backward(self.activation, self.g, self.v, self.before, *vectors)

    def expected(self) -> list[Expected]:
        """In float64, never all images at once."""
        ours = self.baseline()
        index, pixels = compared_images(self.v), self.v.numel() // self.v.shape[1]
        (reference, *_), (magnitude, *_), (slack, *_) = self._exact(self.g[index], self.v[index])
        found = [_expected(reference, magnitude, 2, ours[0][index], slack, index)]
        parts = [[sums for _, *sums in self._exact(g, v)] for g, v in _groups(self.g, self.v)]
        for place in range(2):
            reference, magnitude, slack = (torch.stack([part[i][place] for part in parts]).sum(0) for i in range(3))
            found.append(_expected(reference, magnitude, pixels, ours[1 + place], slack))
        return found

    def _exact(self, g: Tensor, v: Tensor) -> tuple[Results, Results, Results]:
        """Results, their magnitudes, and what they may differ by where a value is so near a bound of the activation
        that rounding in fp32 decides on which side it lies.
        """
        g, v, eps, dims = g.double(), v.double(), torch.finfo(torch.float32).eps, (0, 2, 3)
        mean, rstd, weight, bias = (
            t.double().view(1, -1, 1, 1) for t in (self.mean, self.rstd, self.weight, self.bias)
        )
        before = (v - mean) * rstd * weight + bias
        exact = norm_backward(self.activation, g, v, before, *(t.flatten() for t in (mean, rstd, weight)))
        normalised, scale = (v.abs() + mean.abs()) * rstd, (rstd * weight).abs()
        rounding = 4 * eps * (normalised * weight.abs() + bias.abs())
        unsure = (before.abs() <= rounding) | ((before - _UPPER[self.activation]).abs() <= rounding)
        jump = torch.where(unsure & (self.activation != "none"), g.abs(), 0.0)
        magnitudes, slack = ((t * scale, (t * normalised).sum(dims), t.sum(dims)) for t in (g.abs(), jump))
        return exact, magnitudes, slack


Job = DepthwiseJob | BatchNormJob


def _groups(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same few images of every tensor, until all have been there."""
    return zip(*(t.split(_SOME_IMAGES) for t in tensors), strict=True)


def _expected(
    reference: Tensor,
    magnitude: Tensor,
    terms: int,
    ours: Tensor,
    slack: Tensor | None = None,
    images: Tensor | None = None,
) -> Expected:
    """The two conditions of docs/numerics.md for a sum of ``terms`` products; ``slack`` counts in both."""
    limit = 2 * torch.finfo(ours.dtype).eps * math.sqrt(terms) * magnitude
    rms = (ours.double() - reference).square().nanmean().sqrt().item()
    if slack is not None:
        limit, rms = limit + slack, math.hypot(rms, slack.square().nanmean().sqrt().item())
    return Expected(reference, rms, limit, images)


def norm_backward(
    activation: str, g: Tensor, v: Tensor, before: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor
) -> Results:
    """The gradients of v, weight and bias of a frozen BatchNorm with its activation, in PyTorch's operators.

    ReLU and ReLU6 pass the gradient strictly inside their linear range, as PyTorch's do: 0 at 0 and at 6.
    """
    if activation != "none":
        g = g * ((before > 0) & (before < 6) if activation == "relu6" else before > 0)
    normalised = (v - mean.view(1, -1, 1, 1)) * rstd.view(1, -1, 1, 1)
    dv = (g * (rstd * weight).view(1, -1, 1, 1)).to(v.dtype)
    return dv, (g * normalised).sum((0, 2, 3), dtype=weight.dtype), g.sum((0, 2, 3), dtype=weight.dtype)


def key(job: Job) -> str:
    """The class that a verdict is for: as ``classes.shape_key``, with the kind of gradient in place of the item, and
    the layout of the gradient at the end.
    """
    layout = "nchw" if is_planar(job.g) else "nhwc"
    return f"gradient.{job.kind}.{job.detail}|{class_of(job.image)}|{layout}"


def candidates(job: Job, backends: tuple[str, ...]) -> list[Candidate]:
    """The kernels that can do ``job``, in order of preference; PyTorch's operators are always there besides."""
    if job.image.dtype not in DTYPES:
        return []
    return list(_depthwise(job, backends) if isinstance(job, DepthwiseJob) else _norm(job, backends))


def _depthwise(job: DepthwiseJob, backends: tuple[str, ...]) -> Iterator[Candidate]:
    kernel, where = tuple(job.weight.shape[2:]), job.geometry
    simple = where.dilation == (1, 1) and where.stride in ((1, 1), (2, 2))
    if "cuda" in backends and kernel in ((3, 3), (5, 5)) and simple:
        yield Candidate("cuda.gradient:0", _cuda)
    if "triton" in backends and max(kernel) <= LARGEST_KERNEL:
        from mobilenet_ext.backends.triton.depthwise_backward import DATA_CONFIGS

        for config in range(len(DATA_CONFIGS) if job.kind == "depthwise_input" else 1):
            yield Candidate(f"triton.gradient:{config}", partial(_triton, config))


def _norm(job: BatchNormJob, backends: tuple[str, ...]) -> Iterator[Candidate]:
    if "triton" in backends and job.activation in CLAMPS:
        from mobilenet_ext.backends.triton.batch_norm_backward import APPLY_CONFIGS

        for config in range(len(APPLY_CONFIGS)):
            yield Candidate(f"triton.gradient:{config}", partial(_triton_norm, config))


def _as_kernels_have_it(weight: Tensor, dtype: torch.dtype) -> Tensor:
    return weight[:, 0].permute(1, 2, 0).to(dtype).contiguous()


def _as_torch_has_it(taps: Tensor, like: Tensor) -> Tensor:
    return taps.permute(2, 0, 1).unsqueeze(1).to(like.dtype).contiguous()


def _cuda(job: DepthwiseJob) -> Results:
    from mobilenet_ext.backends import cuda

    where, size = job.geometry, (job.x.shape[2], job.x.shape[3])
    if job.kind == "depthwise_input":
        weight = _as_kernels_have_it(job.weight, job.g.dtype)
        return (cuda.depthwise_backward_data(job.g, weight, where.stride[0], where.padding, size),)
    taps = cuda.depthwise_backward_weight(job.x, job.g, job.weight.shape[2], where.stride[0], where.padding)
    return (_as_torch_has_it(taps, job.weight),)


def _triton(config: int, job: DepthwiseJob) -> Results:
    from mobilenet_ext.backends.triton import depthwise_backward
    from mobilenet_ext.backends.triton.common import Geometry

    where = job.geometry
    kernel: Any = tuple(job.weight.shape[2:])
    geometry = Geometry(kernel, where.stride, where.dilation, *where.padding, job.g.shape[2], job.g.shape[3])
    if job.kind == "depthwise_input":
        weight = _as_kernels_have_it(job.weight, job.g.dtype)
        size = (job.x.shape[2], job.x.shape[3])
        return (depthwise_backward.backward_data(job.g, weight, geometry, *size, config),)
    return (_as_torch_has_it(depthwise_backward.backward_weight(job.x, job.g, geometry), job.weight),)


def _triton_norm(config: int, job: BatchNormJob) -> Results:
    from mobilenet_ext.backends.triton.batch_norm_backward import batch_norm_act_backward

    mean, rstd, weight, bias = (t.float().contiguous() for t in (job.mean, job.rstd, job.weight, job.bias))
    dv, dweight, dbias = batch_norm_act_backward(job.v, job.g, mean, rstd, weight, bias, job.activation, False, config)
    # Two views of one tensor of sums: operators may not return those.
    return dv, dweight.to(job.weight.dtype, copy=True), dbias.to(job.weight.dtype, copy=True)
