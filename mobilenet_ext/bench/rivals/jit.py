"""TorchScript: traced, frozen, ``optimize_for_inference``."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from mobilenet_ext.bench.rivals.base import Rival, Runner


def _convert(model: nn.Module, example: Tensor) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, which is not the reader's concern here
        return torch.jit.optimize_for_inference(torch.jit.freeze(torch.jit.trace(model, example)))


def _load(module: Any, example: Tensor, threads: int) -> Runner:
    return lambda: module(example)


FROZEN = Rival("torch.jit", "trace, freeze, optimize_for_inference", ("torch",), _load, _convert)
