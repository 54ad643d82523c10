"""PyTorch as it comes, operator by operator."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from mobilenet_ext.bench.rivals.base import Rival, Runner


def _load(model: Any, example: Tensor, threads: int) -> Runner:
    return lambda: model(example)


def _load_channels_last(model: Any, example: Tensor, threads: int) -> Runner:
    x = example.contiguous(memory_format=torch.channels_last)
    return lambda: model(x)


def _convert_channels_last(model: Any, example: Tensor) -> Any:
    return copy.deepcopy(model).to(memory_format=torch.channels_last)


CONTIGUOUS = Rival("eager", "contiguous input and weights", ("torch",), _load)
CHANNELS_LAST = Rival(
    "eager channels_last", "channels_last input and weights", ("torch",), _load_channels_last, _convert_channels_last
)
