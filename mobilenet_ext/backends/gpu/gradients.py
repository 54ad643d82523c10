"""The gradients of a frozen block on a GPU: what is asked, PyTorch's answer, and the kernels that can give it.

Each is one job with its own check and verdict (:mod:`~mobilenet_ext.backends.gpu.runtime`), since the fastest kernel of
one says nothing of another.  Results are those of PyTorch's operators, in the same dtypes and shapes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mobilenet_ext.backends.gpu.limits import DTYPES, LARGEST_KERNEL
from mobilenet_ext.backends.gpu.plans import Candidate
from mobilenet_ext.spec import CLAMPS

KINDS = ("depthwise_input", "depthwise_weight", "batch_norm")
_UPPER = {"none": math.inf, "relu": math.inf, "relu6": 6.0}
_SOME_IMAGES = 4  # of a batch are in float64 at a time
Results = tuple[Tensor, ...]


@dataclass(frozen=True)
class Expected:
    """One result in float64, the RMS error that PyTorch has, and how far each element may be off."""

    reference: Tensor
    rms: float
    limit: Tensor


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
        """In float64, a few images at a time; K is the number of taps, or of output pixels."""
        exact, magnitude = [], []
        for start in range(0, self.x.shape[0], _SOME_IMAGES):
            g, x = (t[start : start + _SOME_IMAGES].double() for t in (self.g, self.x))
            exact.append(self._torch(g, x, self.weight.double()))
            magnitude.append(self._torch(g.abs(), x.abs(), self.weight.double().abs()))
        join: Callable[[list[Tensor]], Tensor] = torch.cat
        terms = self.weight.shape[2] * self.weight.shape[3]
        if self.kind == "depthwise_weight":
            join, terms = (lambda parts: torch.stack(parts).sum(0)), self.g.numel() // self.g.shape[1]
        return [_expected(join(exact), join(magnitude), terms, *self.baseline())]


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
        """In float64.  Where rounding in fp32 decides on which side of a bound a value lies, either side is right."""
        eps = torch.finfo(torch.float32).eps
        g, v = self.g.double(), self.v.double()
        mean, rstd, weight, bias = (t.double().view(1, -1, 1, 1) for t in (*self._vectors(), self.bias))
        before = (v - mean) * rstd * weight + bias
        exact = norm_backward(self.activation, g, v, before, *(t.double() for t in self._vectors()))
        rounding = 4 * eps * ((v.abs() + mean.abs()) * (rstd * weight).abs() + bias.abs())
        upper = _UPPER[self.activation]
        unsure = (before.abs() <= rounding) | ((before - upper).abs() <= rounding)
        jump = torch.where(unsure & (self.activation != "none"), g.abs(), 0.0)
        normalised, scale, dims = (v.abs() + mean.abs()) * rstd, (rstd * weight).abs(), (0, 2, 3)
        magnitudes = ((g * scale).abs(), (g.abs() * normalised).sum(dims), g.abs().sum(dims))
        slack = (jump * scale, (jump * normalised).sum(dims), jump.sum(dims))
        pixels = v.numel() // v.shape[1]
        terms = (2, pixels, pixels)
        found = []
        for reference, magnitude, extra, count, ours in zip(
            exact, magnitudes, slack, terms, self.baseline(), strict=True
        ):
            plain = _expected(reference, magnitude, count, ours)
            # What the doubtful elements may add is no loss of precision; it counts in the RMS error as in the bound.
            allowed = math.hypot(plain.rms, extra.square().mean().sqrt().item())
            found.append(Expected(reference, allowed, plain.limit + extra))
        return found

    def _vectors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.mean, self.rstd, self.weight


Job = DepthwiseJob | BatchNormJob


def _expected(reference: Tensor, magnitude: Tensor, terms: int, ours: Tensor) -> Expected:
    """The two conditions of docs/numerics.md for a sum of ``terms`` products."""
    limit = 2 * torch.finfo(ours.dtype).eps * math.sqrt(terms) * magnitude
    rms = (ours.double() - reference).square().nanmean().sqrt().item()
    return Expected(reference, rms, limit)


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
    """The class that a verdict is for: as ``choices.shape_key``, with the kind of gradient in place of the item."""
    x = job.image
    batch = 1 << max(0, int(x.shape[0]) - 1).bit_length()
    dtype = str(x.dtype).removeprefix("torch.")
    return f"gradient.{job.kind}.{job.detail}|{dtype}|n{batch}|{'x'.join(map(str, x.shape[1:]))}|{_layout(x)}"


def _layout(x: Tensor) -> str:
    return "nhwc" if x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous() else "nchw"


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
