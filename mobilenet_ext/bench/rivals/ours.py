"""Our own ways to run a case."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import mobilenet_ext
from mobilenet_ext._library import native
from mobilenet_ext.bench.rivals.base import Rival, Runner
from mobilenet_ext.spec import BlockSpec, encode

PACKAGES = ("mobilenet_ext", "torch")


def _fuse(model: nn.Module, example: Tensor) -> nn.Module:
    return mobilenet_ext.fuse(model)


def _load(fused: Any, example: Tensor, threads: int) -> Runner:
    return lambda: fused(example)


def _load_compiled(fused: Any, example: Tensor, threads: int) -> Runner:
    compiled = torch.compile(fused)
    compiled(example)
    return lambda: compiled(example)


def chain(
    name: str, items: tuple[BlockSpec, ...], sources: Callable[[nn.Module], Sequence[Tensor]], residual: bool = False
) -> Rival:
    """The operator itself on ``items``; ``residual`` adds the input afterwards, where no item does it."""
    program, constants = encode(items)

    def convert(model: nn.Module, example: Tensor) -> Tensor:
        slot = torch.tensor(native.new_slot())
        weakref.finalize(slot, native.free_slot, slot.item())
        torch.ops.mobilenet_ext.chain(example, list(sources(model)), slot, program, constants)  # packs
        return slot

    def load(slot: Any, example: Tensor, threads: int) -> Runner:
        x = example.contiguous(memory_format=torch.channels_last)  # as inside a network
        run = torch.ops.mobilenet_ext.chain_cached.default
        if residual:
            return lambda: run(x, slot).add_(x)
        return lambda: run(x, slot)

    convolutions = "one operator call" if len(items) == 1 else f"{len(items)} convolutions, one after the other"
    return Rival(name, f"{convolutions}, channels_last input", PACKAGES, load, convert, is_ours=True)


FUSED = Rival("mobilenet_ext", "fuse(model), contiguous input", PACKAGES, _load, _fuse, is_ours=True)
COMPILED = Rival(
    "mobilenet_ext compiled",
    "torch.compile(fuse(model)), contiguous input",
    PACKAGES,
    _load_compiled,
    _fuse,
    is_ours=True,
)
