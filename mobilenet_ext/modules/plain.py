"""What is done after the plain modules ran in place of a chain: strides as promised, distrust after training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mobilenet_ext.freshness import bump_epoch
from mobilenet_ext.memory_format import in_format_of
from mobilenet_ext.modules.chain import FusedChain
from mobilenet_ext.modules.structure import in_training


def finish_plain(module: nn.Module, chain: FusedChain, x: Any, y: Any) -> Any:
    """The plain modules' output ``y`` for ``x`` with the strides that ``chain`` would have given it.

    BatchNorm in training has just changed its statistics without a new version: then packed weights are distrusted.
    """
    if not torch.compiler.is_compiling() and in_training(module, chain.match.norms):
        bump_epoch()
    if not isinstance(y, Tensor) or y.dim() != 4 or torch._C._are_functorch_transforms_active():
        return y
    if not chain.follow_input:
        return y.contiguous(memory_format=torch.channels_last)
    return in_format_of(y, x) if isinstance(x, Tensor) and x.dim() == 4 else y
