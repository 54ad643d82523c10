"""The module objects and tensors that a fused chain has found in its module."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mobilenet_ext.freshness import SourceWatch
from mobilenet_ext.modules.structure import Structure

if TYPE_CHECKING:
    from mobilenet_ext.matchers import Match

PLAIN_TENSORS = frozenset({Tensor, nn.Parameter})


def is_supported(tensor: Tensor) -> bool:
    """Whether the kernels take ``tensor`` as a source; integers are BatchNorm's batch counts."""
    return (
        type(tensor) in PLAIN_TENSORS
        and tensor.is_cpu
        and tensor.layout is torch.strided
        and (tensor.dtype is torch.float32 or not tensor.is_floating_point())
    )


def is_supported_on_gpu(tensor: Tensor, x: Tensor) -> bool:
    """Whether the GPU's chain operator takes ``tensor`` as a source beside the image ``x``."""
    return (
        type(tensor) in PLAIN_TENSORS
        and tensor.device == x.device
        and tensor.layout is torch.strided
        and (tensor.dtype in (x.dtype, torch.float32) or not tensor.is_floating_point())
    )


class Bound:
    """What a chain knows about the module objects of one instance; ``holds`` is the snapshot's verdict in ``epoch``.

    AttributeError or KeyError when a part that the match names is gone.
    """

    __slots__ = ("epoch", "holds", "structure", "watch")

    def __init__(self, module: nn.Module, match: Match) -> None:
        self.structure = Structure(module, match.skipped, match.norms, match.identities, match.traced)
        owners = [module.get_submodule(source.path) for source in match.sources]
        self.watch = SourceWatch(owners, [source.name for source in match.sources])
        self.epoch: object = None
        self.holds = False

    def is_that_of(self, module: nn.Module) -> bool:
        """Whether ``module`` still has the very parts, parameters and buffers that this is bound to."""
        return self.structure.is_that_of(module) and self.watch.holds()
