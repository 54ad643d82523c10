"""Removing hidden channels whose depthwise kernel is zero: ``fuse(model, drop_dead_channels=True)``.

Such a channel is the same number everywhere, borders included: activation(shift of its BatchNorm).  The project sees
a constant, which the mean of its BatchNorm (or its bias) takes in, and the channel goes.  For kernels that are exactly
zero the result differs by rounding only.  Kernels that are so small that fp32 cannot tell them from zero go too, where
the activation before them bounds their input: ReLU6 to [0, 6], hardsigmoid and sigmoid to [0, 1].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mobilenet_ext.backends.aten import activate
from mobilenet_ext.folding import fold
from mobilenet_ext.matchers import Match, match_module, source_tensors
from mobilenet_ext.matchers.common import Source
from mobilenet_ext.spec import BlockSpec, ConvSpec

DROPPED = "_mobilenet_ext_dropped"  # on a block: what was removed from it
_RANGES = {"relu6": 6.0, "hardsigmoid": 1.0, "sigmoid": 1.0}
_SMALL = 2.0**-26  # of the constant that takes a channel's place: below half a unit of its last place


@dataclass(frozen=True)
class Dropped:
    """``channels`` of ``hidden`` hidden channels went; the output moved by at most ``bound``, apart from rounding."""

    channels: int
    hidden: int
    bound: float


@torch.no_grad()
def drop_dead_channels(model: nn.Module) -> None:
    """Shrink, in place, every block of ``model`` that has dead hidden channels; its class and its other settings stay.

    The shapes of the tensors inside change, so checkpoints of the larger block no longer fit.
    """
    for module in list(model.modules()):
        match = match_module(module)
        if isinstance(match, Match) and match.level == "block" and len(match.chain) == 1:
            (block,) = match.chain
            if isinstance(block, BlockSpec) and _may_shrink(block):
                _shrink(module, match, block)


def _may_shrink(block: BlockSpec) -> bool:
    return block.expand is not None and block.depthwise is not None and block.project is not None and not block.squeezed


def _stages(
    module: nn.Module, match: Match, block: BlockSpec
) -> dict[str, tuple[ConvSpec, dict[str, Source], dict[str, Tensor]]]:
    sources, tensors = iter(match.sources), iter(source_tensors(module, match))
    found = {}
    for role, spec in block.stages():
        places = {name: next(sources) for name in spec.sources}
        found[role] = (spec, places, {name: next(tensors) for name in spec.sources})
    return found


def _shrink(module: nn.Module, match: Match, block: BlockSpec) -> None:
    stages = _stages(module, match, block)
    spec, _, tensors = stages["depthwise"]
    weight, shift = fold(spec, tensors)
    reach = weight.abs().sum((1, 2, 3)) * _RANGES.get(stages["expand"][0].activation, float("inf"))
    reach = torch.where(weight.abs().amax((1, 2, 3)) == 0, torch.zeros_like(reach), reach)
    constant = activate(spec, shift)
    dead = (reach == 0) | (reach <= _SMALL * constant.abs())
    count = int(dead.sum())
    if not count or count == spec.out_channels:
        return
    project_spec, places, project = stages["project"]
    project_weight = project["weight"].double()[:, :, 0, 0]
    moved = project_weight[:, dead] @ constant[dead]
    folded, _ = fold(project_spec, project)
    bound = float((folded[:, dead, 0, 0].abs() @ reach[dead]).max())
    if not _add_to_output(module, project_spec, places, project, moved):
        return
    keep = ~dead
    for role, dimension in (("expand", 0), ("depthwise", 0), ("project", 1)):
        _keep(module, stages[role][0], stages[role][1], keep, dimension)
    setattr(module, DROPPED, Dropped(count, spec.out_channels, bound))


def _add_to_output(
    module: nn.Module, spec: ConvSpec, places: Mapping[str, Source], tensors: Mapping[str, Tensor], moved: Tensor
) -> bool:
    """Add ``moved`` to what the project's convolution returns; False where there is nothing that takes it in."""
    if spec.has_bn:
        tensors["running_mean"].sub_(moved.to(tensors["running_mean"]))
    elif "conv_bias" in places:
        tensors["conv_bias"].add_(moved.to(tensors["conv_bias"]))
    else:
        return False
    return True


def _keep(module: nn.Module, spec: ConvSpec, places: Mapping[str, Source], keep: Tensor, dimension: int) -> None:
    """Only the kept channels of a stage's tensors, and the settings that say how many there are."""
    count = int(keep.sum())
    for name, source in places.items():
        if name == "num_batches_tracked" or (dimension == 1 and name != "weight"):
            continue
        owner: Any = module.get_submodule(source.path)
        old = getattr(owner, source.name)
        new = old.index_select(dimension if name == "weight" else 0, keep.nonzero()[:, 0].to(old.device)).contiguous()
        if isinstance(old, nn.Parameter):
            setattr(owner, source.name, nn.Parameter(new, old.requires_grad))
        else:
            setattr(owner, source.name, new)
        if isinstance(owner, nn.modules.batchnorm._BatchNorm):
            owner.num_features = count
    conv: Any = module.get_submodule(places["weight"].path)
    if dimension == 1:
        conv.in_channels = count
        return
    conv.out_channels = count
    if spec.depthwise:
        conv.in_channels = conv.groups = count
