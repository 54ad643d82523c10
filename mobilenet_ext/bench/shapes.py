"""Layers as lines of text, one shape per line, and the layer tables of whole networks.

A line is ``KIND CHANNELS HEIGHTxWIDTH [OPTION...]``, a ``#`` starts a comment, and CHANNELS is ``in->out`` or
``in->hidden->out``::

    dense      3->32        224x224  k3 s2  relu6
    pointwise  16->96       112x112  relu6          # options: relu6, relu, none; residual; pool (the mean over H and W)
    depthwise  96           112x112  k3 s2  relu6   # kernel, stride, d2 is dilation 2, same is TensorFlow's padding
    separable  32->64       112x112  k3 s1  relu6   # depthwise, then pointwise, activation after both
    block      16->96->24   112x112  k3 s2  relu6   # expand, depthwise, project; expand3s2: 3x3 expand with stride 2;
                                                    # project-relu6, project-relu: an activation after project too

Every convolution has BatchNorm.  Padding keeps the size at stride 1.  A classifier is no layer of its own here: its
kernel runs behind a pool, as part of a network.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from mobilenet_ext.matchers import Match, match_module
from mobilenet_ext.models import MobileNetV1, MobileNetV2
from mobilenet_ext.spec import ACTIVATIONS, BlockSpec, ConvSpec

KINDS = ("dense", "pointwise", "depthwise", "separable", "block")
SOURCES = ("weight", "bn_weight", "bn_bias", "running_mean", "running_var")
EPS = 1e-5
_CHANNEL_COUNT = {"dense": 2, "pointwise": 2, "depthwise": 1, "separable": 2, "block": 3}
_PROJECT = {f"project-{name}": name for name in ACTIVATIONS}
_NUMBERED = re.compile(r"([ksd])([1-9]\d*)")
_EXPAND = re.compile(r"expand([1-9]\d*)s([1-9]\d*)")


@dataclass(frozen=True)
class Layer:
    """One layer on an image of ``size`` (height, width) pixels; ``note`` says where it comes from."""

    item: BlockSpec
    size: tuple[int, int]
    note: str = ""

    @property
    def kind(self) -> str:
        return kind_of(self.item)

    @property
    def line(self) -> str:
        """The line that :func:`parse` reads, without the note."""
        return " ".join([self.kind, _channels(self.item), f"{self.size[0]}x{self.size[1]}", *_options(self.item)])


def kind_of(item: BlockSpec) -> str:
    """One of ``KINDS``."""
    if item.expand is None:
        return "depthwise" if item.project is None else "separable"
    if item.depthwise is None:
        return "pointwise" if item.expand.kernel == (1, 1) else "dense"
    return "block"


def parse(line: str) -> Layer:
    """The layer of one line.  ValueError names the word that is wrong and what is allowed."""
    text, _, note = line.partition("#")
    words = text.split()
    if len(words) < 3 or words[0] not in KINDS:
        raise ValueError(
            f"line {line.strip()!r}; allowed: KIND CHANNELS HEIGHTxWIDTH ..., KIND one of {', '.join(KINDS)}"
        )
    kind, size = words[0], _numbers(words[2], "x", 2, line)
    channels = _numbers(words[1], "->", _CHANNEL_COUNT[kind], line)
    numbers = {"k": 1 if kind == "pointwise" else 3, "s": 1, "d": 1}
    expand, flags, activation, last = (1, 1), set(), "relu6", None
    for word in words[3:]:
        if match := _NUMBERED.fullmatch(word):
            numbers[match[1]] = int(match[2])
        elif match := _EXPAND.fullmatch(word):
            expand = (int(match[1]), int(match[2]))
        elif word in ACTIVATIONS:
            activation = word
        elif word in ("residual", "pool", "same"):
            flags.add(word)
        elif word in _PROJECT:
            last = _PROJECT[word]
        else:
            allowed = ", ".join(["k3, s2, d2, expand3s2, same, residual, pool", *_PROJECT, *ACTIVATIONS])
            raise ValueError(f"{word!r} in line {line.strip()!r}; allowed: {allowed}")
    geometry = (numbers["k"], numbers["s"], numbers["d"], "same" in flags)
    last = last or ("none" if kind == "block" else activation)
    stages: dict[str, ConvSpec] = {}
    if kind in ("dense", "pointwise"):
        stages["expand"] = _conv(channels[0], channels[1], *geometry, False, activation)
    if kind == "block":
        stages["expand"] = _conv(channels[0], channels[1], *expand, 1, "same" in flags, False, activation)
    if kind in ("depthwise", "separable", "block"):
        hidden = channels[1] if kind == "block" else channels[0]
        stages["depthwise"] = _conv(hidden, hidden, *geometry, True, activation)
    if kind in ("separable", "block"):
        stages["project"] = _conv(stages["depthwise"].out_channels, channels[-1], 1, 1, 1, False, False, last)
    item = BlockSpec(**stages, residual="residual" in flags, pool="pool" in flags)  # type: ignore[arg-type]
    return Layer(item, (size[0], size[1]), note.strip())


def read(path: str | Path) -> list[Layer]:
    """The layers of a file, in order; OSError if it cannot be read, ValueError with the number of a wrong line."""
    try:
        text = Path(path).read_text()
    except OSError as error:
        raise OSError(f"the shapes cannot be read: {error}") from error
    layers = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.partition("#")[0].strip():
            try:
                layers.append(parse(line))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
    return layers


def network_layers(model: nn.Module, size: tuple[int, int]) -> list[Layer]:
    """The layers that a whole network runs as, on one image of ``size``; ValueError if it is not known as a whole."""
    match = match_module(model)
    if not isinstance(match, Match):
        reason = "it is not recognised as a whole" if match is None else match.reason
        raise ValueError(f"{type(model).__name__} has no layer table: {reason}")
    return list(_walk(match, size))


def paper_layers(kinds: Sequence[str]) -> list[Layer]:
    """The layers of our MobileNetV1 and V2 at alpha 1 and 224 pixels that are of ``kinds``, each shape once.

    Blocks are listed whole, and their convolutions under their own kinds.
    """
    found: dict[str, Layer] = {}
    for name, model in (("V1", MobileNetV1()), ("V2", MobileNetV2())):
        for whole in network_layers(model.eval(), (224, 224)):
            for layer in dict.fromkeys([whole, *parts(whole)]):
                if layer.kind in kinds:
                    found.setdefault(layer.line, replace(layer, note=f"{name} {layer.note}"))
    return sorted(found.values(), key=lambda layer: KINDS.index(layer.kind))


def parts(layer: Layer) -> list[Layer]:
    """The convolutions that a layer consists of, each with the size of its input.

    A block with squeeze-and-excitation stays whole: what it multiplies by is no convolution of the image.
    """
    if layer.item.kind == "conv" or layer.item.squeezed:
        return [layer]
    result = []
    size = layer.size
    for _, spec in layer.item.stages():
        item = BlockSpec(depthwise=spec) if spec.depthwise else BlockSpec(expand=spec)
        result.append(Layer(item, size, layer.note))
        size = spec.output_size(*size)
    return result


def _walk(match: Match, size: tuple[int, int]) -> Iterator[Layer]:
    for index, item in enumerate(match.chain):
        if isinstance(item, BlockSpec):
            yield Layer(_plain_batch_norm(item), size, f"layer {index}")
            size = item.output_size(*size)


def _plain_batch_norm(block: BlockSpec) -> BlockSpec:
    """The block with the tensors that :func:`parse` gives every stage, which change nothing at inference.

    A shortcut that begins before the block is left out: alone, the block has no such input.
    """
    if block.residual_back:
        block = replace(block, residual=False, residual_back=False)
    stages = {role: replace(spec, sources=SOURCES, eps=EPS) for role, spec in block.stages()}
    return replace(block, **stages)  # type: ignore[arg-type]


def _conv(
    in_channels: int, out_channels: int, kernel: int, stride: int, dilation: int, same: bool, depthwise: bool, act: str
) -> ConvSpec:
    pad = dilation * (kernel - 1) // 2
    return ConvSpec(
        in_channels,
        out_channels,
        (kernel, kernel),
        (stride, stride),
        (dilation, dilation),
        "same" if same else (pad, pad, pad, pad),
        depthwise,
        act,
        EPS,
        SOURCES,
    )


def _numbers(word: str, separator: str, count: int, line: str) -> list[int]:
    numbers = word.split(separator)
    if len(numbers) != count or not all(number.isdecimal() and int(number) > 0 for number in numbers):
        raise ValueError(f"{word!r} in line {line.strip()!r}; allowed: {separator.join(['N'] * count)}, N above 0")
    return [int(number) for number in numbers]


def _channels(item: BlockSpec) -> str:
    stages = [spec for _, spec in item.stages()]
    if len(stages) == 1 and stages[0].depthwise:
        return str(stages[0].in_channels)
    hidden = [stages[0].out_channels] if item.expand is not None and len(stages) > 1 else []
    return "->".join(map(str, [item.in_channels, *hidden, item.out_channels]))


def _options(item: BlockSpec) -> Iterator[str]:
    stages = dict(item.stages())
    first = next(iter(stages.values()))
    main = stages.get("depthwise", first)
    if main is not first and (first.kernel, first.stride) != ((1, 1), (1, 1)):
        yield f"expand{first.kernel[0]}s{first.stride[0]}"
    if main.kernel != (1, 1):
        yield f"k{main.kernel[0]}"
    yield f"s{main.stride[0]}"
    if main.dilation != (1, 1):
        yield f"d{main.dilation[0]}"
    if main.padding == "same":
        yield "same"
    yield main.activation
    if item.project is not None and item.expand is not None and item.project.activation != "none":
        yield f"project-{item.project.activation}"
    if item.residual:
        yield "residual"
    if item.pool:
        yield "pool"
