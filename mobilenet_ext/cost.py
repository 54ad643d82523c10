"""Multiply-adds and parameters of a model, layer by layer, beside what the MobileNet papers print.

PyTorch's own counter counts, on meta tensors, so that nothing is computed.  Counted are convolutions and linear layers,
the classifier among them, one multiply-add per multiplication, for one image.  Not counted are BatchNorm (a
convolution takes it in at inference), biases, activations, pooling and shortcut additions.  Parameters are all
parameters, those of BatchNorm included; running statistics are buffers and are not counted.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, takewhile

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mobilenet_ext.models import MobileNetV1, MobileNetV2

ALPHAS: dict[str, tuple[float, ...]] = {"v1": (1.0, 0.75, 0.5, 0.25), "v2": (1.4, 1.0, 0.75, 0.5, 0.35)}
BETAS: tuple[float, ...] = (1.0, 192 / 224, 160 / 224, 128 / 224)

# (alpha, input size in pixels) -> millions of multiply-adds, millions of parameters.
# v1: arXiv 1704.04861, tables 6 and 7; v2: arXiv 1801.04381, table 4.
PAPERS: dict[str, dict[tuple[float, int], tuple[float, float]]] = {
    "v1": {
        (1.0, 224): (569, 4.2),
        (0.75, 224): (325, 2.6),
        (0.5, 224): (149, 1.3),
        (0.25, 224): (41, 0.5),
        (1.0, 192): (418, 4.2),
        (1.0, 160): (290, 4.2),
        (1.0, 128): (186, 4.2),
    },
    "v2": {(1.0, 224): (300, 3.4), (1.4, 224): (585, 6.9)},
}
NOTES: dict[str, str] = {
    "v1": "V1 agrees with its paper to the printed digit; the paper cuts 290.68 M off where it rounds the others.",
    "v2": (
        "V2 differs: 3.4 M and 300 M are the 3.47 M weights without BatchNorm and 300.77 M, cut off; no rounding of "
        "the widths gives 6.9 M and 585 M, and the authors' released 1.4 model has 6.06 M and 582 M: ours without "
        "BatchNorm. Below alpha 1 the paper keeps 1280 channels before the classifier; here they scale too."
    ),
}


@dataclass(frozen=True)
class LayerCost:
    """One convolution or linear layer; ``kind`` is 'dense', 'depthwise', 'pointwise', 'grouped' or 'linear'.

    ``kernel`` and ``output_size`` are (height, width) in pixels, (1, 1) for a linear layer.
    """

    path: str
    kind: str
    in_channels: int
    out_channels: int
    kernel: tuple[int, int]
    output_size: tuple[int, int]
    multiply_adds: int
    parameters: int


@dataclass(frozen=True)
class ModelCost:
    """A model's layers in the order of ``named_modules``, and totals; ``parameters`` includes BatchNorm's."""

    layers: tuple[LayerCost, ...]
    multiply_adds: int
    parameters: int


@dataclass(frozen=True)
class SeparableCost:
    """A depthwise convolution with the pointwise one after it, against one dense convolution of the same shape.

    ``path`` is the module that holds both.  ``ratio`` is separable over dense multiply-adds as counted; ``law`` is
    what the V1 paper derives for it, 1 / out_channels + 1 / kernel area.
    """

    path: str
    in_channels: int
    out_channels: int
    kernel: tuple[int, int]
    output_size: tuple[int, int]
    separable: int
    dense: int

    @property
    def ratio(self) -> float:
        return self.separable / self.dense

    @property
    def law(self) -> float:
        return 1 / self.out_channels + 1 / (self.kernel[0] * self.kernel[1])


@dataclass(frozen=True)
class GridCost:
    """One cell of the alpha x beta table; the paper's figures are in millions, None where it prints none."""

    model: str
    alpha: float
    beta: float
    input_size: int
    multiply_adds: int
    parameters: int
    paper_multiply_adds: float | None
    paper_parameters: float | None


def model_cost(model: nn.Module, input_size: int, in_channels: int = 3) -> ModelCost:
    """Cost of one (1, in_channels, input_size, input_size) image; ``model`` stays as it is, on whatever device.

    A layer that ``forward`` does not call is left out; one that it calls twice counts twice.
    ValueError for sizes below 1.
    """
    for name, value in (("input_size", input_size), ("in_channels", in_channels)):
        if value < 1:
            raise ValueError(f"{name} is {value!r}; allowed: an integer of at least 1")
    plain = copy.deepcopy(model).to("meta").eval()
    layers = {path: layer for path, layer in plain.named_modules() if isinstance(layer, (nn.Conv2d, nn.Linear))}
    shapes: dict[str, torch.Size] = {}
    for path, layer in layers.items():
        layer.register_forward_hook(partial(_note_shape, shapes, path))
    counts, total = _count(plain, (1, in_channels, input_size, input_size))
    root = type(plain).__name__
    return ModelCost(
        layers=tuple(
            _layer_cost(path, layer, shapes[path], counts[f"{root}.{path}" if path else root])
            for path, layer in layers.items()
            if path in shapes
        ),
        multiply_adds=total,
        parameters=sum(parameter.numel() for parameter in plain.parameters()),
    )


def separable_costs(cost: ModelCost) -> list[SeparableCost]:
    """Every depthwise layer of ``cost`` whose next layer is pointwise, against the dense convolution it replaces."""
    pairs = []
    for depthwise, pointwise in pairwise(cost.layers):
        if (depthwise.kind, pointwise.kind) != ("depthwise", "pointwise"):
            continue
        # Without padding this input gives the output size that both layers have, whatever their stride was.
        size = [out + k - 1 for out, k in zip(depthwise.output_size, depthwise.kernel, strict=True)]
        channels, width = depthwise.in_channels, pointwise.out_channels
        dense = nn.Conv2d(channels, width, depthwise.kernel, bias=False, device="meta")
        pairs.append(
            SeparableCost(
                path=_common_path(depthwise.path, pointwise.path),
                in_channels=channels,
                out_channels=width,
                kernel=depthwise.kernel,
                output_size=depthwise.output_size,
                separable=depthwise.multiply_adds + pointwise.multiply_adds,
                dense=_count(dense, (1, channels, *size))[1],
            )
        )
    return pairs


def build(model: str, alpha: float = 1.0) -> nn.Module:
    """Reference model 'v1' or 'v2' on the meta device: shapes without memory.  ValueError for another name."""
    classes: dict[str, type[MobileNetV1] | type[MobileNetV2]] = {"v1": MobileNetV1, "v2": MobileNetV2}
    if model not in classes:
        raise ValueError(f"model is {model!r}; allowed: {', '.join(classes)}")
    with torch.device("meta"):
        return classes[model](alpha=alpha)


def input_size(beta: float) -> int:
    """Side in pixels of the image at resolution multiplier ``beta``; ValueError where that is below 1."""
    size = round(224 * beta)
    if size < 1:
        raise ValueError(f"beta is {beta!r}; allowed: values whose input size, round(224 * beta), is at least 1")
    return size


def grid(model: str, alphas: Iterable[float], betas: Iterable[float]) -> Iterator[GridCost]:
    """The cost of 'v1' or 'v2' at every alpha and beta, with the paper's figures where it prints them."""
    resolutions = [(beta, input_size(beta)) for beta in betas]
    for alpha in alphas:
        network = build(model, alpha)
        for beta, size in resolutions:
            cost = model_cost(network, size)
            printed = PAPERS[model].get((alpha, size), (None, None))
            yield GridCost(model, alpha, beta, size, cost.multiply_adds, cost.parameters, *printed)


def _count(module: nn.Module, shape: tuple[int, ...]) -> tuple[dict[str, int], int]:
    """Multiply-adds of ``module``, already on meta: by the counter's module name, and in all."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(torch.empty(shape, device="meta"))
    by_name = {name: sum(flops.values()) // 2 for name, flops in counter.get_flop_counts().items()}
    return by_name, counter.get_total_flops() // 2


def _note_shape(
    shapes: dict[str, torch.Size], path: str, layer: nn.Module, args: tuple[Tensor, ...], output: Tensor
) -> None:
    shapes[path] = output.shape


def _layer_cost(path: str, layer: nn.Conv2d | nn.Linear, shape: torch.Size, multiply_adds: int) -> LayerCost:
    parameters = sum(parameter.numel() for parameter in layer.parameters())
    if isinstance(layer, nn.Linear):
        return LayerCost(
            path, "linear", layer.in_features, layer.out_features, (1, 1), (1, 1), multiply_adds, parameters
        )
    kernel = (layer.kernel_size[0], layer.kernel_size[1])
    size = (shape[2], shape[3])
    return LayerCost(path, _kind(layer), layer.in_channels, layer.out_channels, kernel, size, multiply_adds, parameters)


def _common_path(first: str, second: str) -> str:
    pairs = zip(first.split("."), second.split("."), strict=False)
    return ".".join(name for name, _ in takewhile(lambda names: names[0] == names[1], pairs))


def _kind(conv: nn.Conv2d) -> str:
    if conv.groups > 1:
        return "depthwise" if conv.groups == conv.in_channels == conv.out_channels else "grouped"
    return "pointwise" if conv.kernel_size == (1, 1) else "dense"
