"""What the training tests share: blocks of every kind, and gradients in float64 with the masks of the float32 run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from mobilenet_ext.backends import aten
from mobilenet_ext.spec import BlockSpec, ConvSpec, encode, source_names

NORM = ("bn_weight", "bn_bias", "running_mean", "running_var")
PLAIN = ("weight", *NORM)
BIASED = ("weight", "conv_bias", *NORM)


def block(
    channels: tuple[int, int, int],
    kernel: int = 3,
    stride: int = 1,
    activation: str = "relu6",
    residual: bool = False,
    expand: ConvSpec | None = None,
    project: str | None = "none",
    sources: tuple[str, ...] = PLAIN,
) -> BlockSpec:
    """An inverted residual; equal first two channel counts: without expand."""
    cin, hidden, out = channels
    if expand is None and cin != hidden:
        expand = ConvSpec(cin, hidden, activation=activation, eps=1e-3, sources=sources)
    size, pad = (kernel, kernel), (kernel // 2,) * 4
    depthwise = ConvSpec(hidden, hidden, size, (stride, stride), (1, 1), pad, True, activation, 1e-3, sources)
    last = ConvSpec(hidden, out, activation=project, eps=1e-3, sources=sources) if project is not None else None
    return BlockSpec(expand, depthwise, last, residual=residual)


STEM = ConvSpec(3, 16, (3, 3), (2, 2), (1, 1), (1, 1, 1, 1), activation="relu6", eps=1e-3, sources=PLAIN)
BLOCKS: dict[str, BlockSpec] = {
    "residual": block((8, 24, 8), residual=True),
    "stride_2": block((8, 24, 12), stride=2),
    "off_the_vector": block((7, 19, 13), kernel=5, stride=2, activation="relu"),
    "no_expand": block((8, 8, 12)),
    "separable": block((8, 8, 12), project="relu6"),
    "stem": block((3, 16, 8), expand=STEM),
    "conv_bias": block((8, 24, 8), sources=BIASED),
    "linear": block((8, 24, 8), activation="none"),
    "no_norm": block((8, 24, 8), sources=("weight", "conv_bias")),
    "ends_depthwise": block((8, 24, 24), project=None),
    "pointwise": BlockSpec(expand=ConvSpec(8, 20, activation="relu6", eps=1e-3, sources=PLAIN)),
    "depthwise_same": BlockSpec(
        depthwise=ConvSpec(8, 8, (3, 3), (2, 2), (1, 1), "same", True, "relu", 1e-3, PLAIN)
    ),
    "stem_same": BlockSpec(expand=replace(STEM, padding="same")),
}  # fmt: skip


def make_sources(spec: BlockSpec, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Unlike values everywhere, sized so that both clamps of ReLU6 bite."""
    generator = torch.Generator().manual_seed(1)

    def normal(shape: Sequence[int]) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    tensors = []
    for _, stage in spec.stages():
        for name in stage.sources:
            if name == "weight":
                fan_in = stage.weight_shape[1] * stage.kernel[0] * stage.kernel[1]
                value = normal(stage.weight_shape) * (2 / fan_in) ** 0.5
            elif name in ("running_var", "bn_weight"):
                value = 0.5 + normal((stage.out_channels,)).abs()
            else:
                value = normal((stage.out_channels,)) * 0.5
            tensors.append(value.to(dtype).requires_grad_(not name.startswith("running")))
    return tensors


def make_input(spec: BlockSpec, batch: int = 5, size: tuple[int, int] = (12, 13)) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    channels = next(stage.in_channels for _, stage in spec.stages())
    return (torch.randn((batch, channels, *size), generator=generator) * 2 + 0.3).requires_grad_()


def modes_of(spec: BlockSpec, mode: str) -> list[int]:
    """'frozen', 'batch', or 'mixed': the first stage on the batch's statistics alone."""
    norms = [stage.has_bn for _, stage in spec.stages()]
    if mode == "mixed":
        return [int(has and not i) for i, has in enumerate(norms)]
    return [int(has and mode == "batch") for has in norms]


def train_block(x: Tensor, sources: list[Tensor], spec: BlockSpec, batch: list[int]) -> tuple[Tensor, ...]:
    program, constants = encode((spec,))
    return torch.ops.mobilenet_ext.train_block(x, sources, None, program, constants, batch)


Masks = list[Tensor]


def reference(
    x: Tensor, sources: Sequence[Tensor], spec: BlockSpec, batch: Sequence[int], masks: Masks | None = None
) -> tuple[Tensor, Masks]:
    """The block in plain operators, and where its activations pass gradients; ``masks`` are forced on it if given."""
    ((_, stages),) = aten.split((spec,), sources)
    y, found = x, []
    for index, ((_, stage), tensors, is_batch) in enumerate(zip(spec.stages(), stages, batch, strict=True)):
        y = aten.convolve(stage, y, tensors["weight"], tensors.get("conv_bias"))
        if stage.has_bn:
            mean, var = (None, None) if is_batch else (tensors["running_mean"], tensors["running_var"])
            affine = tensors.get("bn_weight"), tensors.get("bn_bias")
            y = F.batch_norm(y, mean, var, *affine, bool(is_batch), 0.0, stage.eps)
        value = aten.activate(stage, y)
        high = 6 if stage.activation == "relu6" else float("inf")
        mask = (y > 0) & (y < high) if stage.activation != "none" else torch.ones_like(y, dtype=torch.bool)
        found.append(mask)
        if masks is not None:
            # The value of this run, the gradient where the other run passed it.
            value = torch.where(masks[index], y, y.detach()) + (value - y).detach()
        y = value
    return (y + x if spec.residual else y), found


def gradients(y: Tensor, x: Tensor, sources: Sequence[Tensor], spec: BlockSpec, seed: int = 3) -> dict[str, Tensor]:
    """Of a fixed random functional of ``y``, by name; the input's is ``x``."""
    generator = torch.Generator().manual_seed(seed)
    g = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype)
    names = [f"{i}.{name}" for i, name in enumerate(source_names((spec,)))]
    wanted = {"x": x, **{n: s for n, s in zip(names, sources, strict=True) if s.requires_grad}}
    found = torch.autograd.grad(y, list(wanted.values()), g)
    return dict(zip(wanted, found, strict=True))


def double(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t.detach().double().requires_grad_(t.requires_grad) for t in tensors]


def rms(tensor: Tensor) -> float:
    return float(tensor.double().square().mean().sqrt())


Compare = Callable[[Tensor, Tensor], float]
