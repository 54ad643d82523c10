"""What is benchmarked: whole networks by name and single layers, each with the PyTorch module that defines it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mobilenet_ext import loading
from mobilenet_ext.backends import aten
from mobilenet_ext.bench import shapes
from mobilenet_ext.bench.rivals import ours
from mobilenet_ext.bench.rivals.base import Rival
from mobilenet_ext.bench.shapes import SOURCES, Layer
from mobilenet_ext.spec import BlockSpec

NETWORK = "network"


@dataclass(frozen=True)
class Case:
    """``model`` in eval mode on images of ``image`` = (channels, height, width); ``ours`` are our ways to run it.

    ``multiply_adds`` and ``activation_bytes`` (input and output) are for one image, ``weight_bytes`` for all.
    """

    name: str
    kind: str
    model: nn.Module
    image: tuple[int, int, int]
    ours: tuple[Rival, ...]
    multiply_adds: int
    activation_bytes: int
    weight_bytes: int
    layer: Layer | None = None

    def example(self, batch: int) -> Tensor:
        """The same random images every time, (batch, C, H, W) fp32 contiguous."""
        return torch.randn(batch, *self.image, generator=torch.Generator().manual_seed(batch))

    def bytes(self, batch: int) -> int:
        """What has to be moved at least: input, output and weights once."""
        return batch * self.activation_bytes + self.weight_bytes


def network(name: str, size: tuple[int, int] | None = None, files: loading.Files = loading.NO_FILES) -> Case:
    """The network ``name`` (a file, with what ``files`` says) of :mod:`mobilenet_ext.loading`.

    ``size`` is (height, width) in pixels, or the model's own.

    LoadError if there is no such model; ValueError if it does not return one tensor.
    """
    model = files.load(name, max(size) if size else None)
    side = loading.input_size(model)
    image = (loading.input_channels(model), *(size or (side, side)))
    label = name if size is None or size == (side, side) else f"{name} {size[0]}x{size[1]}"
    return _case(label, NETWORK, model, image, (ours.FUSED,))


def layer_case(layer: Layer) -> Case:
    """One layer with random weights; blocks of several convolutions are also run convolution by convolution."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = PlainLayer(layer.item).eval()
    chains = [ours.chain("mobilenet_ext", (layer.item,), _sources)]
    pieces = [part.item for part in shapes.parts(layer)]
    if len(pieces) > 1:
        chains.append(ours.chain("by convolution", tuple(pieces), _sources, layer.item.residual))
    image = (layer.item.in_channels, *layer.size)
    return _case(layer.line, layer.kind, model, image, tuple(chains), layer)


class PlainLayer(nn.Module):
    """The layer as separate PyTorch operators, with weights whose activations reach both clamps of ReLU6."""

    def __init__(self, item: BlockSpec) -> None:
        super().__init__()
        self.item = item
        for index, (_, spec) in enumerate(item.stages()):
            terms = spec.kernel[0] * spec.kernel[1] * (1 if spec.depthwise else spec.in_channels)
            channels = spec.out_channels
            values = {
                "weight": torch.randn(spec.weight_shape) * (2 / terms) ** 0.5,
                "bn_weight": torch.empty(channels).uniform_(1.0, 3.0),
                "bn_bias": torch.empty(channels).normal_(0.5, 1.0),
                "running_mean": torch.empty(channels).normal_(0.0, 0.3),
                "running_var": torch.empty(channels).uniform_(0.6, 1.6),
            }
            for source in SOURCES:
                self.register_buffer(f"{source}_{index}", values[source])

    def forward(self, x: Tensor) -> Tensor:
        return aten.run_chain((self.item,), x, list(self.buffers()))


def _sources(model: nn.Module) -> Sequence[Tensor]:
    return list(model.buffers())


def _case(
    name: str,
    kind: str,
    model: nn.Module,
    image: tuple[int, int, int],
    contenders: tuple[Rival, ...],
    layer: Layer | None = None,
) -> Case:
    plain = copy.deepcopy(model).to("meta")
    x = torch.empty((1, *image), device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        y = plain(x)
    if not isinstance(y, Tensor):
        raise ValueError(f"{name} returns a {type(y).__name__}; allowed: a model that returns one tensor")
    weights = sum(t.numel() * t.element_size() for t in _tensors(model))
    macs = counter.get_total_flops() // 2
    return Case(name, kind, model, image, contenders, macs, 4 * (x.numel() + y.numel()), weights, layer)


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    """What inference has to read: BatchNorm folds into the weights and one bias."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.dim() > 1 or "bias" in name:
            yield tensor
