"""What a model's blocks cost and hold: shapes, arithmetic, bytes, and depthwise channels that do nothing."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from mobilenet_ext import unfuse
from mobilenet_ext._library import native
from mobilenet_ext.folding import fold
from mobilenet_ext.loading import input_channels, input_size
from mobilenet_ext.matchers import Match, Refusal, match_module, match_runs, source_tensors
from mobilenet_ext.report import item_paths
from mobilenet_ext.spec import SQUEEZE_ROLES, BlockSpec, ChainItem, ConvSpec, LinearSpec, PoolSpec, encode

DEAD_THRESHOLD = 1e-3
_FLOAT = 4  # bytes of an element: the kernels are float32
_SMALLEST = torch.finfo(torch.float32).tiny  # packing flushes what is smaller

Shape = tuple[int, ...]  # (C, H, W), or (C,) after a pool or a linear layer


@dataclass(frozen=True)
class BlockInspection:
    """One fused unit on one image; ``path`` names the submodules it stands for, ``kernel`` the kernel for this size.

    ``hidden_shapes`` are the tensors between its stages; they make up ``hidden_bytes``, which fusing keeps out of
    memory.  ``weight_bytes`` are the float32 weights and biases after BatchNorm was folded in.  ``fused_bytes`` is
    the least that moves: input, output and weights, each once.  ``unfused_bytes`` is the same for one kernel per
    convolution, with BatchNorm, activation and shortcut inside: hidden tensors are written and read once, and the
    shortcut reads the input again.  ``dead_channels`` of ``depthwise_channels`` have a folded depthwise kernel below
    the threshold; ``zero_channels`` of them are exactly zero as packed.
    """

    path: str
    kind: str
    kernel: str
    in_shape: Shape
    hidden_shapes: tuple[Shape, ...]
    out_shape: Shape
    stride: tuple[int, int]
    multiply_adds: int
    hidden_bytes: int
    weight_bytes: int
    fused_bytes: int
    unfused_bytes: int
    depthwise_channels: int
    dead_channels: int
    zero_channels: int

    @property
    def byte_ratio(self) -> float:
        return self.fused_bytes / self.unfused_bytes


@dataclass(frozen=True)
class Inspection:
    """The blocks in the order of the model, for one image of ``size`` x ``size`` pixels.

    ``refused`` maps the path of what looks like a block or a known model, but is not supported, to the reason.
    """

    size: int
    dead_threshold: float
    blocks: tuple[BlockInspection, ...]
    refused: dict[str, str]


def inspect_model(model: nn.Module, size: int | None = None, dead_threshold: float = DEAD_THRESHOLD) -> Inspection:
    """Inspect every block that ``fuse`` would swap, fused already or not; ``model`` stays as it is.

    ``size`` is the side in pixels (default: the model's own).  A depthwise channel is dead when the largest magnitude
    of its folded kernel is at most ``dead_threshold`` times that of its layer, or packs to zero.

    TypeError if ``model`` is no ``torch.nn.Module``; ValueError for a size below 1, a threshold outside [0, 1), or a
    model that does not run at this size.
    """
    plain = unfuse(model)
    size = input_size(plain) if size is None else size
    if size < 1:
        raise ValueError(f"size is {size}; allowed: an integer of at least 1")
    if not 0 <= dead_threshold < 1:
        raise ValueError(f"dead_threshold is {dead_threshold}; allowed: from 0 up to, but not including, 1")
    refused: dict[str, str] = {}
    chains = list(_chains(plain, "", refused, set()))
    shapes = _input_sizes(plain, [first for _, first, _ in chains], size)
    blocks = [
        block
        for path, first, match in chains
        if first in shapes
        for block in _inspect_chain(path, plain.get_submodule(path), match, shapes[first], dead_threshold)
    ]
    return Inspection(size, dead_threshold, tuple(blocks), refused)


def _join(prefix: str, path: str) -> str:
    return f"{prefix}.{path}" if prefix and path else prefix or path


def _chains(module: nn.Module, path: str, refused: dict[str, str], seen: set[int]) -> Iterator[tuple[str, str, Match]]:
    """Path of the owner, path of the module that gets the chain's input, and match, of the largest chains."""
    if id(module) in seen:
        return
    seen.add(id(module))
    match = match_module(module)
    if isinstance(match, Match):
        yield path, path, match
        return
    if isinstance(match, Refusal):
        refused[path] = match.reason
    children = list(module._modules.items())
    covered: set[int] = set()
    for run in match_runs(module) if isinstance(module, nn.Sequential) else ():
        yield path, _join(path, children[run.start][0]), run.match
        covered.update(range(run.start, run.stop))
    for index, (name, child) in enumerate(children):
        if child is not None and index not in covered:
            yield from _chains(child, _join(path, name), refused, seen)


def _input_sizes(model: nn.Module, paths: list[str], size: int) -> dict[str, tuple[int, int]]:
    """(height, width) of the first input of each module that an image of this size reaches; nothing is computed."""
    found: dict[str, tuple[int, int]] = {}
    meta = copy.deepcopy(model).to("meta").eval()

    def note(path: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            if args and isinstance(args[0], Tensor) and args[0].dim() == 4:
                found.setdefault(path, (args[0].shape[2], args[0].shape[3]))

        return hook

    for path in paths:
        meta.get_submodule(path).register_forward_pre_hook(note(path))
    try:
        with torch.no_grad():
            meta(torch.empty(1, input_channels(meta), size, size, device="meta"))
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"the model does not run on an image of {size}x{size} pixels: {error}") from error
    return found


def _inspect_chain(
    path: str, module: nn.Module, match: Match, size: tuple[int, int], threshold: float
) -> Iterator[BlockInspection]:
    steps = native.plan(*encode(match.chain), *size, torch.get_num_threads())
    tensors = iter(source_tensors(module, match))
    for item, parts, step in zip(match.chain, item_paths(match), steps, strict=True):
        label = " + ".join(_join(path, part) or "(model)" for part in parts)
        yield _inspect_item(label, item, step, size, tensors, threshold)
        size = step["out_size"]


def _inspect_item(
    label: str,
    item: ChainItem,
    step: dict[str, Any],
    size: tuple[int, int],
    tensors: Iterator[Tensor],
    threshold: float,
) -> BlockInspection:
    shapes, weights, stride = _shapes(item, size)
    total, dead, zero = 0, 0, 0
    for _, spec in item.stages():
        values = dict(zip(spec.sources, islice(tensors, len(spec.sources)), strict=True))
        if isinstance(spec, ConvSpec) and spec.depthwise:
            total += spec.out_channels
            dead, zero = (a + b for a, b in zip((dead, zero), _dead(spec, values, threshold), strict=True))
    first, *hidden, last = [_FLOAT * prod(shape) for shape in shapes]
    shortcut = last if isinstance(item, BlockSpec) and (item.residual or item.residual_back) else 0
    fused = first + last + weights
    return BlockInspection(
        path=label,
        kind=step["kind"],
        kernel=step["kernel"],
        in_shape=shapes[0],
        hidden_shapes=tuple(shapes[1:-1]),
        out_shape=shapes[-1],
        stride=stride,
        multiply_adds=int(step["multiply_adds"]),
        hidden_bytes=sum(hidden),
        weight_bytes=weights,
        fused_bytes=fused,
        unfused_bytes=fused + 2 * sum(hidden) + shortcut,
        depthwise_channels=total,
        dead_channels=dead,
        zero_channels=zero,
    )


def _shapes(item: ChainItem, size: tuple[int, int]) -> tuple[list[Shape], int, tuple[int, int]]:
    """Every tensor from the input to the output, the bytes of the folded weights, and the stride of the whole."""
    if isinstance(item, LinearSpec):
        count = (item.in_features + (item.sources != ("weight",))) * item.out_features
        return [(item.in_features,), (item.out_features,)], _FLOAT * count, (1, 1)
    shapes: list[Shape] = [(item.in_channels, *size)]
    if isinstance(item, PoolSpec):
        return [*shapes, (item.channels,)], 0, (1, 1)
    weights, stride = 0, (1, 1)
    for role, spec in item.stages():
        if role not in SQUEEZE_ROLES:
            size = spec.output_size(*size)
            shapes.append((spec.out_channels, *size))
        weights += _FLOAT * (prod(spec.weight_shape) + spec.out_channels)
        stride = (stride[0] * spec.stride[0], stride[1] * spec.stride[1])
    if item.pool:
        shapes.append((item.out_channels,))
    return shapes, weights, stride


def _dead(spec: ConvSpec, tensors: dict[str, Tensor], threshold: float) -> tuple[int, int]:
    """How many channels of a depthwise stage are dead, and how many of those are zero."""
    weight, _ = fold(spec, tensors)
    largest = weight.abs().flatten(1).amax(dim=1)
    zero = largest < _SMALLEST
    return int((zero | (largest <= threshold * largest.max())).sum()), int(zero.sum())
