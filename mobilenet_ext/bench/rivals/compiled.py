"""``torch.compile`` with frozen weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from mobilenet_ext.bench.rivals.base import Rival, Runner


def _load(model: Any, example: Tensor, threads: int) -> Runner:
    import torch._inductor.config as inductor

    x = example.contiguous(memory_format=torch.channels_last)
    # The generated code has the number of threads in it, so every number gets a compilation of its own.
    compiled = torch.compile(copy.deepcopy(model).to(memory_format=torch.channels_last))
    with inductor.patch(freezing=True):
        compiled(x)
    return lambda: compiled(x)


FREEZING = Rival("torch.compile", "inductor, freezing, channels_last input and weights", ("torch",), _load)
