"""BatchNorm folded into a convolution: the only place in Python with the formula.

Folding is done in float64 and cast once by the caller.  Folding in a low precision costs accuracy that no later step
can bring back (see docs/numerics).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mobilenet_ext.spec import ConvSpec


def scale_and_shift(spec: ConvSpec, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """What BatchNorm in eval mode, and the convolution's bias, do to the bare convolution of ``spec``.

    ``tensors`` as in :func:`fold`.  Returns ``(scale, shift)``, float64 of shape ``(out_channels,)``, with
    ``batch_norm(conv(x) + bias) == conv(x) * scale + shift``.
    """
    values = {name: tensors[name].detach().double() for name in spec.sources if name != "num_batches_tracked"}
    weight = values["weight"]
    zero = torch.zeros(spec.out_channels, dtype=torch.float64, device=weight.device)
    bias = values.get("conv_bias", zero)
    if not spec.has_bn:
        return torch.ones_like(zero), bias.clone()
    scale = torch.rsqrt(values["running_var"] + spec.eps)
    if "bn_weight" in values:
        scale = scale * values["bn_weight"]
    return scale, (bias - values["running_mean"]) * scale + values.get("bn_bias", zero)


def fold(spec: ConvSpec, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that equals ``spec``'s convolution followed by its BatchNorm in eval mode.

    ``tensors`` maps every name in ``spec.sources`` to its tensor, of any floating-point dtype.  A missing affine
    weight counts as one, every other missing vector as zero; ``num_batches_tracked`` is not read.

    Returns ``(weight, bias)`` in float64 on the device of the sources, detached: weight of shape ``spec.weight_shape``,
    bias of shape ``(out_channels,)``.
    """
    scale, shift = scale_and_shift(spec, tensors)
    return tensors["weight"].detach().double() * scale.view(-1, *[1] * (tensors["weight"].dim() - 1)), shift
