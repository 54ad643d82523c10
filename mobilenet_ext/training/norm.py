"""BatchNorm of one stage as coefficients: forward a scale and a shift, backward three more vectors.

With batch statistics, M values per channel and u the convolution's result (Ioffe and Szegedy, arXiv 1502.03167, section
3), the gradient of u is scale * (g - sum(g) / M - (u - mean) * rstd^2 * sum(g * (u - mean)) / M).  A convolution bias
then cancels.  Frozen, it is scale * g.  All in float64; the vectors that kernels read are cast once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mobilenet_ext.spec import ConvSpec
from mobilenet_ext.training.passes import BOUNDS, Affine, Coefficients


@dataclass(frozen=True)
class Norm:
    """The BatchNorm, activation and convolution bias of one stage; ``mean`` is that of the bare convolution."""

    spec: ConvSpec
    batch: bool
    affine: Affine
    center: Tensor  # mean, in the kernels' dtype
    mean: Tensor
    rstd: Tensor
    scale: Tensor

    @classmethod
    def of(cls, spec: ConvSpec, tensors: Mapping[str, Tensor], stats: tuple[Tensor, Tensor] | None) -> Norm:
        """``stats`` are the mean and variance of the batch; None: frozen, or no BatchNorm at all."""
        weight = tensors["weight"]
        ones = torch.ones(spec.out_channels, dtype=torch.float64)
        zeros = torch.zeros(spec.out_channels, dtype=torch.float64)
        bias = tensors["conv_bias"].double() if "conv_bias" in tensors else None
        if not spec.has_bn:
            mean, rstd, gamma, beta = zeros, ones, ones, zeros if bias is None else bias
        else:
            gamma = tensors["bn_weight"].double() if "bn_weight" in tensors else ones
            beta = tensors["bn_bias"].double() if "bn_bias" in tensors else zeros
            if stats is not None:
                mean, var = stats
            else:
                mean, var = tensors["running_mean"].double(), tensors["running_var"].double()
                mean = mean if bias is None else mean - bias
            rstd = torch.rsqrt(var + spec.eps)
        scale = gamma * rstd
        shift = beta - mean * scale
        affine = Affine(scale.to(weight.dtype), shift.to(weight.dtype), *BOUNDS[spec.activation])
        return cls(spec, stats is not None, affine, mean.to(weight.dtype), mean, rstd, scale)

    def gradients(self, sums: Tensor) -> dict[str, Tensor]:
        """Those of the vectors, from the sums of g' and g' * (u - center)."""
        total, about_mean = self._sums(sums)
        found: dict[str, Tensor] = {}
        if self.spec.has_bn:
            found["bn_weight"], found["bn_bias"] = about_mean * self.rstd, total
        found["conv_bias"] = torch.zeros_like(total) if self.batch else total * self.scale
        return {name: value.to(self.center.dtype) for name, value in found.items()}

    def coefficients(self, sums: Tensor, count: int) -> Coefficients:
        """What makes g' the gradient of the convolution's result; ``count`` values per channel."""
        dtype = self.center.dtype
        a = self.affine.scale
        if not self.batch:
            return Coefficients(a, None, None, self.center)
        slope = self.slope(sums, count)
        c = -self.scale * (sums[0] / count) - slope * (self.center.double() - self.mean)
        return Coefficients(a, (-slope).to(dtype), c.to(dtype), self.center)

    def slope(self, sums: Tensor, count: int) -> Tensor:
        """The factor of (u - mean) that the batch's variance takes off the gradient."""
        return self.scale * self.rstd.square() * (self._sums(sums)[1] / count)

    def _sums(self, sums: Tensor) -> tuple[Tensor, Tensor]:
        # The kernels subtract the rounded mean.
        return sums[0], sums[1] - (self.mean - self.center.double()) * sums[0]
