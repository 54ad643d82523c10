"""The check before timing: every contender's output against float64."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mobilenet_ext import tolerance

# Honest fp32 gives 1e-7 to 1e-5 here, bf16 and fp16 arithmetic 1e-3 to 1e-2.
RIVAL_LIMIT = 1e-4
_IMAGES_AT_ONCE = 8


@dataclass(frozen=True)
class Accuracy:
    """``relative`` is the norm of the error over that of the reference; ``reason`` is empty for a right result."""

    relative: float
    max_abs: float
    reason: str = ""


@dataclass(frozen=True)
class Reference:
    """The float64 output, and the RMS error that PyTorch's own fp32 run has."""

    output: Tensor
    rms_torch: float

    @classmethod
    def of(cls, model: nn.Module, example: Tensor) -> Reference:
        """``model`` is in eval mode, so that every image can be computed alone, which bounds the memory."""
        exact = copy.deepcopy(model).double()
        outputs, squares = [], []
        with torch.no_grad():
            for images in example.split(_IMAGES_AT_ONCE):
                outputs.append(exact(images.double()))
                squares.append((model(images).double() - outputs[-1]).square().flatten())
        return cls(torch.cat(outputs), torch.cat(squares).mean().sqrt().item())

    def judge(self, result: Any, strict: bool) -> Accuracy:
        """``strict`` asks for twice PyTorch's own error at most (docs/numerics), else ``RIVAL_LIMIT`` holds."""
        actual = torch.as_tensor(result)
        if actual.shape != self.output.shape:
            shapes = f"shape {tuple(actual.shape)} instead of {tuple(self.output.shape)}"
            return Accuracy(float("inf"), float("inf"), f"wrong result: {shapes}")
        error = actual.detach().double() - self.output
        scale = self.output.norm().item()
        relative, largest = error.norm().item() / scale if scale else 0.0, error.abs().max().item()
        if not relative <= RIVAL_LIMIT:  # a NaN is wrong, too
            return Accuracy(relative, largest, f"wrong result: relative error {relative:.1e}, limit {RIVAL_LIMIT:.0e}")
        comparison = tolerance.compare(actual, self.output, self.rms_torch)
        if strict and not comparison.ok:
            rms = f"RMS error {comparison.rms:.1e}, PyTorch's own {comparison.rms_torch:.1e}"
            return Accuracy(relative, largest, f"wrong result: {rms}")
        return Accuracy(relative, largest)
