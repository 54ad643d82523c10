"""Weights as the GPU kernels read them: raw weight in the image's dtype, BatchNorm as fp32 scale and shift per channel.

Nothing is folded into a low-precision weight: scale and shift are computed in float64, kept in fp32 and applied to the
fp32 sums.  A packed chain can be packed again in place, so that a captured CUDA graph sees new weights.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mobilenet_ext.backends import aten
from mobilenet_ext.backends.gpu.classes import item_key
from mobilenet_ext.folding import scale_and_shift
from mobilenet_ext.spec import BlockSpec, ChainItem, ConvSpec


@dataclass(frozen=True)
class PackedStage:
    """One stage: weight (kH, kW, C) of a depthwise, (C, C') of a 1x1, None where PyTorch runs it; vectors (C',)."""

    spec: ConvSpec
    weight: Tensor | None
    scale: Tensor
    shift: Tensor


@dataclass(frozen=True)
class PackedItem:
    """One item of a chain: its packed stages by role, and its tensors in the image's dtype for PyTorch's operators."""

    item: ChainItem
    stages: dict[str, PackedStage]
    tensors: tuple[dict[str, Tensor], ...]

    @cached_property
    def key(self) -> str:
        return item_key(self.item)

    @property
    def sources(self) -> list[Tensor]:
        return [tensor for named in self.tensors for tensor in named.values()]


def _for_torch(named: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Convolutions want weight and bias in the image's dtype, as autocast gives them; BatchNorm takes fp32 vectors."""
    return {
        name: tensor.detach().to(dtype) if name in ("weight", "conv_bias") else tensor.detach()
        for name, tensor in named.items()
    }


def _pack_stage(spec: ConvSpec, named: Mapping[str, Tensor], dtype: torch.dtype) -> PackedStage:
    weight = named["weight"].detach()
    packed = None
    if spec.depthwise:
        packed = weight.squeeze(1).permute(1, 2, 0).to(dtype).contiguous()
    elif spec.kernel == (1, 1):
        packed = weight[:, :, 0, 0].t().to(dtype).contiguous()
    if packed is not None and packed.data_ptr() == weight.data_ptr():
        packed = packed.clone()  # pack_into writes here, and this would be the caller's memory
    scale, shift = scale_and_shift(spec, named)
    return PackedStage(spec, packed, scale.float(), shift.float())


def pack(chain: Sequence[ChainItem], sources: Sequence[Tensor], dtype: torch.dtype) -> list[PackedItem]:
    """Pack a chain for images of ``dtype`` on the device of its sources."""
    packed = []
    with torch.no_grad():
        for item, named in aten.split(chain, sources):
            stages = {}
            if isinstance(item, BlockSpec):
                stages = {
                    role: _pack_stage(spec, tensors, dtype)
                    for (role, spec), tensors in zip(item.stages(), named, strict=True)
                }
            packed.append(PackedItem(item, stages, tuple(_for_torch(tensors, dtype) for tensors in named)))
    return packed


def pack_into(old: Sequence[PackedItem], new: Sequence[PackedItem], borrowed: Container[int]) -> None:
    """Copy ``new`` over ``old`` of the same chain and dtype, into the same memory.

    ``borrowed`` has the addresses of the sources that ``old`` was packed from.  What lies there is the caller's and is
    not written: ``old`` then refers to the new tensors, and a captured graph goes on reading the caller's old ones.
    """
    with torch.no_grad():
        for before, after in zip(old, new, strict=True):
            for role, stage in before.stages.items():
                fresh = after.stages[role]
                for target, source in zip(stage_tensors(stage), stage_tensors(fresh), strict=True):
                    target.copy_(source)
            for tensors, fresh_tensors in zip(before.tensors, after.tensors, strict=True):
                for name, tensor in tensors.items():
                    if tensor.data_ptr() in borrowed:
                        tensors[name] = fresh_tensors[name]
                    elif tensor.data_ptr() != fresh_tensors[name].data_ptr():
                        tensor.copy_(fresh_tensors[name])


def stage_tensors(stage: PackedStage) -> list[Tensor]:
    """The tensors of a packed stage."""
    return [tensor for tensor in (stage.weight, stage.scale, stage.shift) if tensor is not None]
