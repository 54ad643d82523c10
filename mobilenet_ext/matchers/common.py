"""What every matcher shares: the result types, and readers that turn single PyTorch modules into specs.

Readers raise :class:`RefusedError` with one sentence; ``match_module`` turns that into a :class:`Refusal`.  Nothing
here imports torchvision or timm: a class of theirs can only exist once somebody has imported its module.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from mobilenet_ext.spec import BlockSpec, ChainItem, ConvSpec, LinearSpec, Padding


@dataclass(frozen=True)
class Source:
    """Where one tensor of a chain lives: ``name`` on the submodule at ``path`` ('' is the matched module itself)."""

    path: str
    name: str


@dataclass(frozen=True)
class Match:
    """A module that a chain can stand in for.

    ``sources`` has the order and length of ``spec.source_names(chain)``.  ``level`` is 'block', 'model' or 'run'.
    ``norms`` are the BatchNorm submodules: the chain is valid only while each has ``training`` False and running
    statistics.  ``identities`` are the submodules that must be in eval mode to be the identity (dropout, drop path);
    '' is the matched module itself.  ``skipped`` is every submodule that the fused path does not call.  ``method`` is
    the method that the chain replaces.  ``traced`` says that the chain was read from a run of the module's own
    ``forward``, which may depend on any of its settings.
    """

    chain: tuple[ChainItem, ...]
    sources: tuple[Source, ...]
    level: str
    norms: tuple[str, ...]
    identities: tuple[str, ...]
    skipped: tuple[str, ...]
    method: str = "forward"
    traced: bool = False


@dataclass(frozen=True)
class Refusal:
    """Why a module that looks like a block is not one; modules inside it may still match."""

    reason: str


@dataclass(frozen=True)
class Run:
    """Children [start, stop) of a Sequential as one chain; the match's paths start at the Sequential."""

    start: int
    stop: int
    match: Match


class RefusedError(Exception):
    """Raised by readers; the message is one sentence that names what was found."""


@dataclass(frozen=True)
class SqueezeItem:
    """The two layers of squeeze-and-excitation, until they stand inside the block that they belong to."""

    reduce: ConvSpec
    excite: ConvSpec


PieceItem = ChainItem | SqueezeItem
Recurse = Callable[[nn.Module], "Match | Refusal | None"]


@dataclass(frozen=True)
class Piece:
    """Part of a chain under construction, with the paths of its tensors."""

    items: tuple[PieceItem, ...] = ()
    sources: tuple[Source, ...] = ()
    norms: tuple[str, ...] = ()
    identities: tuple[str, ...] = ()

    def __add__(self, other: Piece) -> Piece:
        return Piece(
            self.items + other.items,
            self.sources + other.sources,
            self.norms + other.norms,
            self.identities + other.identities,
        )

    def under(self, prefix: str) -> Piece:
        """The same piece seen from the parent in which this module is called ``prefix``."""
        return replace(
            self,
            sources=tuple(Source(join(prefix, source.path), source.name) for source in self.sources),
            norms=tuple(join(prefix, path) for path in self.norms),
            identities=tuple(join(prefix, path) for path in self.identities),
        )


def join(prefix: str, path: str) -> str:
    return f"{prefix}.{path}" if prefix and path else prefix or path


def optional_class(module: str, name: str) -> type | None:
    """The class if somebody has imported its module, else None; never imports."""
    return getattr(sys.modules.get(module), name, None)


def is_a(module: nn.Module, base: type | None, methods: Sequence[str] = ("forward",)) -> bool:
    """Whether ``module`` is a ``base`` that computes what ``base`` computes.

    A subclass counts as long as it inherits ``methods``; RefusedError if it, or the instance, overrides one.
    """
    if base is None or not isinstance(module, base):
        return False
    for method in (*methods, "__call__", "_call_impl"):
        if method in vars(module) or getattr(type(module), method) is not getattr(base, method):
            raise RefusedError(f"{type(module).__name__} overrides {method} of {base.__module__}.{base.__qualname__}")
    return True


def require(module: nn.Module, path: str, classes: Sequence[type | None], wanted: str) -> None:
    """Refuse anything but an instance of exactly one of ``classes`` with its own forward."""
    kind = type(module)
    if parametrize.is_parametrized(module):
        raise RefusedError(f"{path} is parametrized")
    if ".quantized" in kind.__module__ or ".qat" in kind.__module__ or ".intrinsic" in kind.__module__:
        raise RefusedError(f"{path} is the quantized {kind.__name__}; allowed: {wanted}")
    if kind not in classes:
        raise RefusedError(f"{path} is a {kind.__name__}; allowed: {wanted}")
    if "forward" in vars(module):
        raise RefusedError(f"{path} has a forward of its own on the instance")


def tensor_source(module: nn.Module, path: str, name: str, shape: Sequence[int]) -> Source | None:
    """The source for parameter or buffer ``name`` of ``module``, None if it is absent."""
    registered = module._parameters.get(name)
    value = module._buffers.get(name) if registered is None else registered
    if value is None:
        if isinstance(getattr(module, name, None), Tensor):
            raise RefusedError(f"{join(path, name)} is computed from other tensors (pruning or weight normalisation)")
        return None
    if tuple(value.shape) != tuple(shape):
        raise RefusedError(f"{join(path, name)} has shape {tuple(value.shape)} where {tuple(shape)} belongs")
    return Source(path, name)


@dataclass(frozen=True)
class Activation:
    """A spec's activation and, for ``leaky_relu``, its slope below zero."""

    name: str = "none"
    slope: float = 0.0


_ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.Identity: "none",
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.Hardswish: "hardswish",
    nn.SiLU: "silu",
    nn.Hardsigmoid: "hardsigmoid",
    nn.LeakyReLU: "leaky_relu",
    nn.Sigmoid: "sigmoid",
}
# timm's own modules for the same functions.
_TIMM_ACTIVATIONS = {"Swish": "silu", "Sigmoid": "sigmoid", "HardSwish": "hardswish", "HardSigmoid": "hardsigmoid"}


def read_activation(module: nn.Module, path: str) -> Activation:
    """The spec's activation for a module; RefusedError names what it is otherwise."""
    timm = {optional_class("timm.layers.activations", name): value for name, value in _TIMM_ACTIVATIONS.items()}
    names = {**_ACTIVATIONS, **{kind: value for kind, value in timm.items() if kind is not None}}
    if type(module) not in names:
        supported = ", ".join(kind.__name__ for kind in _ACTIVATIONS)
        raise RefusedError(f"{path} is the activation {type(module).__name__}; supported: {supported}")
    require(module, path, list(names), "a supported activation")
    name = names[type(module)]
    return Activation(name, float(module.negative_slope) if isinstance(module, nn.LeakyReLU) else 0.0)


def conv_padding(conv: nn.Conv2d, path: str, tensorflow_same: bool) -> Padding | str:
    """Four explicit paddings in pixels, or 'same' where they depend on the input size."""
    if not tensorflow_same and conv.padding_mode != "zeros":
        raise RefusedError(f"{path} has padding_mode {conv.padding_mode!r}; allowed: 'zeros'")
    if tensorflow_same or conv.padding == "same":
        if any(stride > 1 and kernel > 1 for stride, kernel in zip(conv.stride, conv.kernel_size, strict=True)):
            return "same"
        total = [dilation * (kernel - 1) for dilation, kernel in zip(conv.dilation, conv.kernel_size, strict=True)]
        return (total[0] // 2, total[0] - total[0] // 2, total[1] // 2, total[1] - total[1] // 2)
    if isinstance(conv.padding, str):  # 'valid'
        return (0, 0, 0, 0)
    return (conv.padding[0], conv.padding[0], conv.padding[1], conv.padding[1])


BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)  # in eval mode both compute the same


def _pair(values: Sequence[int]) -> tuple[int, int]:
    return (values[0], values[1])


def read_stage(
    conv: nn.Module,
    conv_path: str,
    norm: Any = None,
    norm_path: str = "",
    activation: Activation = Activation(),
    *,
    depthwise: bool | None = None,
    same_class: type | None = None,
    norm_classes: Sequence[type | None] = BATCH_NORMS,
) -> Piece:
    """One convolution with its BatchNorm and activation, as a block of one stage.

    ``depthwise`` demands that kind (None takes what is there).  ``same_class`` is a further convolution class with
    TensorFlow's "same" padding.
    """
    require(conv, conv_path, (nn.Conv2d, same_class), "torch.nn.Conv2d")
    assert isinstance(conv, nn.Conv2d)
    channels = (conv.in_channels, conv.out_channels)
    is_depthwise = conv.groups == channels[0] == channels[1] and (conv.groups > 1 or bool(depthwise))
    if not is_depthwise and conv.groups == conv.in_channels > 1:
        raise RefusedError(f"{conv_path} has channel multiplier {channels[1] // channels[0]}; allowed: 1")
    if not is_depthwise and conv.groups != 1:
        raise RefusedError(
            f"{conv_path} has groups={conv.groups} with {channels[0]} channels; allowed: dense or depthwise"
        )
    if depthwise is not None and depthwise != is_depthwise:
        raise RefusedError(
            f"{conv_path} has groups={conv.groups} where a {'depthwise' if depthwise else 'dense'} stage belongs"
        )

    weight_shape = (channels[1], 1 if is_depthwise else channels[0], *conv.kernel_size)
    entries = [("weight", tensor_source(conv, conv_path, "weight", weight_shape))]
    entries.append(("conv_bias", tensor_source(conv, conv_path, "bias", channels[1:])))
    if norm is not None:
        require(norm, norm_path, norm_classes, "BatchNorm2d")
        if norm.running_mean is None or norm.running_var is None:
            raise RefusedError(f"{norm_path} has no running statistics (track_running_stats=False)")
        for name in ("weight", "bias", "running_mean", "running_var"):
            entries.append((name if "_" in name else f"bn_{name}", tensor_source(norm, norm_path, name, channels[1:])))
        entries.append(("num_batches_tracked", tensor_source(norm, norm_path, "num_batches_tracked", ())))
    present = [(name, source) for name, source in entries if source is not None]
    spec = ConvSpec(
        *channels,
        kernel=_pair(conv.kernel_size),
        stride=_pair(conv.stride),
        dilation=_pair(conv.dilation),
        padding=conv_padding(conv, conv_path, type(conv) is not nn.Conv2d),
        depthwise=is_depthwise,
        activation=activation.name,
        eps=float(norm.eps) if norm is not None else 0.0,
        sources=tuple(name for name, _ in present),
        slope=activation.slope,
    )
    block = BlockSpec(depthwise=spec) if is_depthwise else BlockSpec(expand=spec)
    return Piece((block,), tuple(source for _, source in present), (norm_path,) if norm is not None else ())


def read_linear(module: nn.Module, path: str, activation: Activation = Activation()) -> Piece:
    """A fully connected layer on the pooled features."""
    require(module, path, (nn.Linear, optional_class("timm.layers", "Linear")), "torch.nn.Linear")
    assert isinstance(module, nn.Linear)
    weight = tensor_source(module, path, "weight", (module.out_features, module.in_features))
    bias = tensor_source(module, path, "bias", (module.out_features,))
    names = ("weight",) if bias is None else ("weight", "conv_bias")
    sources = tuple(source for source in (weight, bias) if source is not None)
    spec = LinearSpec(module.in_features, module.out_features, names, activation.name, slope=activation.slope)
    return Piece((spec,), sources)


def as_linear(piece: Piece) -> Piece:
    """A piece of one 1x1 convolution as the fully connected layer that it is on pooled features."""
    (block,) = piece.items
    conv = block.expand if isinstance(block, BlockSpec) else None
    if conv is None or conv.kernel != (1, 1) or conv.stride != (1, 1) or conv.padding != (0, 0, 0, 0):
        raise RefusedError("the convolution after the pooling is not 1x1")
    spec = LinearSpec(conv.in_channels, conv.out_channels, conv.sources, conv.activation, conv.eps, conv.slope)
    return replace(piece, items=(spec,))


def read_squeeze(
    path: str, reduce: nn.Module, act: nn.Module, excite: nn.Module, gate: nn.Module, names: tuple[str, str, str, str]
) -> Piece:
    """Squeeze-and-excitation from its two 1x1 convolutions, the activation between them and the gate, seen from the
    parent in which the module is called ``path``; ``names`` are theirs inside it."""
    paths = [join(path, name) for name in names]
    first = read_stage(reduce, paths[0], activation=read_activation(act, paths[1]), depthwise=False)
    second = read_stage(excite, paths[2], activation=read_activation(gate, paths[3]), depthwise=False)
    specs = [piece.items[0].expand for piece in (first, second) if isinstance(piece.items[0], BlockSpec)]
    for spec, where in zip(specs, (paths[0], paths[2]), strict=True):
        if spec is None or spec.kernel != (1, 1) or spec.stride != (1, 1) or spec.padding != (0, 0, 0, 0):
            raise RefusedError(f"{where} is no 1x1 convolution")
    down, up = specs
    assert down is not None
    assert up is not None
    if down.in_channels != up.out_channels or down.out_channels != up.in_channels:
        raise RefusedError(f"the layers of {path} do not fit together")
    return replace(first + second, items=(SqueezeItem(down, up),))


def read_identity(module: nn.Module, path: str, dropouts: Iterable[type | None] = ()) -> Piece:
    """A module that is the identity, at least in eval mode."""
    require(module, path, (nn.Identity, nn.Dropout, nn.Dropout2d, *dropouts), "Identity, Dropout or drop path")
    return Piece() if type(module) is nn.Identity else Piece(identities=(path,))
