"""What the tests of the fused modules share: small models with unlike numbers everywhere, and proof of what ran."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from mobilenet_ext import _C
from mobilenet_ext.fusion import disabled
from mobilenet_ext.models import InvertedResidual

KINDS = ("block", "conv", "linear")


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every tensor of ``model`` values of its own, sized so that activations stay near 1 and both clamps bite."""
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor: Tensor, low: float, high: float) -> None:
        tensor.uniform_(low, high, generator=generator)

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                draw(module.weight, 0.8, 1.6)
                draw(module.bias, -0.5, 1.5)
                draw(module.running_mean, -0.3, 0.3)
                draw(module.running_var, 0.5, 1.5)
            elif isinstance(module, (nn.Conv2d, nn.Linear)):
                scale = (3.0 / module.weight[0].numel()) ** 0.5
                draw(module.weight, -scale, scale)
    return model


def make_block(stride: int = 1, channels: int = 16) -> InvertedResidual:
    """A plain inverted residual in eval mode; with a shortcut at stride 1."""
    return randomize(InvertedResidual(channels, channels, stride, 4)).eval()


def make_run() -> nn.Sequential:
    """A plain Sequential of three blocks, which ``fuse`` makes one run."""
    return nn.Sequential(*(randomize(InvertedResidual(16, 16, 1, 4), seed) for seed in range(3))).eval()


def example(batch: int = 2, channels: int = 16, size: int = 10) -> Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(7)) * 2


class Features(Dataset):
    """Runs a fused model where the data is made, as a preprocessing step would."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        with torch.no_grad():
            return self.model(example(1) + index)[0]


def kernels_run() -> int:
    """How many fused kernels have run so far."""
    counters = _C.counters()
    return sum(counters.get(kind, 0) for kind in KINDS)


@contextlib.contextmanager
def fused_path(runs: bool = True) -> Iterator[None]:
    """Fail unless at least one fused kernel ran in the block, or with ``runs=False``, if one did."""
    before = kernels_run()
    yield
    ran = kernels_run() - before
    assert bool(ran) == runs, f"{ran} fused kernels ran"


@contextlib.contextmanager
def packs(expected: int) -> Iterator[None]:
    """Fail unless weights were packed exactly ``expected`` times in the block."""
    before = _C.pack_count()
    yield
    assert _C.pack_count() - before == expected


def plain_result(fused: nn.Module, x: Any) -> Tensor:
    """What the plain modules inside ``fused`` make of ``x`` with the weights of now."""
    with disabled(), torch.no_grad(), fused_path(False):
        return fused(x)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """Equal up to the rounding of float32 sums; a stale or wrong weight is a thousand times further off."""
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4 * float(expected.detach().abs().amax()))


def assert_fused_right(fused: nn.Module, x: Any, call: Callable[..., Tensor] | None = None) -> Tensor:
    """``fused`` runs a fused kernel on ``x`` and agrees with its plain modules; gives the result."""
    with torch.no_grad(), fused_path():
        y = (fused if call is None else call)(x)
    assert_close(y, plain_result(fused, x))
    return y
