"""BlockSpec: the one description of a block that every other part of the package consumes.

Matchers produce specs from somebody's modules; folding, packing, the operator's integer program, the report,
``cost``, ``verify`` and ``bench`` all read them.  A *chain* is a sequence of specs that one operator call runs.

A spec holds no tensors.  The tensors of a chain ("sources") travel beside it as one flat list, in the order that
:meth:`ConvSpec.source_names` gives for each stage, stage after stage.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice, pairwise

PROGRAM_VERSION = 2

# Codes shared with csrc/cpu/program.h.
ACTIVATIONS: dict[str, int] = {
    "none": 0,
    "relu": 1,
    "relu6": 2,
    "hardswish": 3,
    "silu": 4,
    "hardsigmoid": 5,
    "leaky_relu": 6,
    "sigmoid": 7,
}
CLAMPS = ("none", "relu", "relu6")  # activations that a kernel applies without a pass of their own
ROLES: dict[str, int] = {"expand": 0, "depthwise": 1, "reduce": 2, "excite": 3, "project": 4}
SQUEEZE_ROLES = ("reduce", "excite")  # on one pixel, the mean of the depthwise output
LAYOUTS: dict[str, int] = {"channels_last": 0, "follow_input": 1}
_BLOCK, _LINEAR, _MEAN = 1, 2, 3
_RESIDUAL, _POOL, _RESIDUAL_BACK = 1, 2, 4
_TRANSIENT = 2
_SOURCE_BITS = {
    "weight": 1,
    "conv_bias": 2,
    "bn_weight": 4,
    "bn_bias": 8,
    "running_mean": 16,
    "running_var": 32,
    "num_batches_tracked": 64,
}

Padding = tuple[int, int, int, int]  # top, bottom, left, right, in pixels


@dataclass(frozen=True)
class ConvSpec:
    """One convolution with its BatchNorm and activation: a stage of a block.

    ``padding`` is (top, bottom, left, right) in pixels, or ``"same"`` for TensorFlow's size-dependent padding, which
    the kernel resolves from the input size (output size ``ceil(input / stride)``, the odd pixel at bottom and right).
    ``depthwise`` means groups == in_channels == out_channels; every other stage is dense (groups == 1).
    ``sources`` names the tensors that exist for this stage, a subset of the keys of ``_SOURCE_BITS`` in that order;
    without ``running_mean`` the stage has no BatchNorm.  ``slope`` is that of ``leaky_relu`` below zero.
    """

    in_channels: int
    out_channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: Padding | str = (0, 0, 0, 0)
    depthwise: bool = False
    activation: str = "none"
    eps: float = 0.0
    sources: tuple[str, ...] = ("weight",)
    slope: float = 0.0

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation is {self.activation!r}; allowed: {', '.join(ACTIVATIONS)}")
        if isinstance(self.padding, str) and self.padding != "same":
            raise ValueError(f"padding is {self.padding!r}; allowed: four integers or 'same'")
        if self.depthwise and self.in_channels != self.out_channels:
            raise ValueError(
                f"a depthwise stage keeps the channel count; got {self.in_channels} and {self.out_channels}"
            )
        if self.slope and self.activation != "leaky_relu":
            raise ValueError(f"slope is {self.slope} with activation {self.activation!r}; allowed: with 'leaky_relu'")
        _check_sources(self.sources)

    @property
    def has_bn(self) -> bool:
        return "running_mean" in self.sources

    @property
    def source_names(self) -> tuple[str, ...]:
        return self.sources

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return (self.out_channels, 1 if self.depthwise else self.in_channels, *self.kernel)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Output height and width in pixels; also right for symbolic sizes under torch.compile."""
        if isinstance(self.padding, str):
            return (height + self.stride[0] - 1) // self.stride[0], (width + self.stride[1] - 1) // self.stride[1]
        top, bottom, left, right = self.padding
        return (
            (height + top + bottom - self.dilation[0] * (self.kernel[0] - 1) - 1) // self.stride[0] + 1,
            (width + left + right - self.dilation[1] * (self.kernel[1] - 1) - 1) // self.stride[1] + 1,
        )

    def encode(self, role: str) -> list[int]:
        same = isinstance(self.padding, str)
        mask = sum(_SOURCE_BITS[name] for name in self.sources)
        pads = [0, 0, 0, 0] if isinstance(self.padding, str) else list(self.padding)
        geometry = [*self.kernel, *self.stride, *self.dilation]
        return [
            ROLES[role],
            self.in_channels,
            self.out_channels,
            *geometry,
            int(same),
            *pads,
            ACTIVATIONS[self.activation],
            mask,
        ]


def _check_sources(sources: tuple[str, ...]) -> None:
    order = [name for name in _SOURCE_BITS if name in sources]
    if tuple(order) != sources or sources[:1] != ("weight",):
        raise ValueError(
            f"sources is {sources}; allowed: 'weight' first, then any of {list(_SOURCE_BITS)[1:]} in order"
        )


@dataclass(frozen=True)
class BlockSpec:
    """expand (dense, any kernel) -> depthwise -> project (1x1), each optional but not all; then pool or residual.

    A single dense convolution is a block with only ``expand``; a depthwise-separable block has no ``expand``.
    ``reduce`` and ``excite`` are the two layers of squeeze-and-excitation (arXiv 1709.01507): the depthwise output is
    multiplied, channel by channel, by excite(reduce(its mean over H and W)) before the project.
    ``residual`` adds the block's input to its output; ``residual_back`` adds the input of the chain's item before
    this one instead, for shortcuts over two items.  ``pool`` replaces the output (N, C, H, W) by its mean over H and
    W, shape (N, C), and is allowed on a block that is a single 1x1 convolution.
    """

    expand: ConvSpec | None = None
    depthwise: ConvSpec | None = None
    project: ConvSpec | None = None
    residual: bool = False
    pool: bool = False
    reduce: ConvSpec | None = None
    excite: ConvSpec | None = None
    residual_back: bool = False

    def __post_init__(self) -> None:
        stages = [spec for _, spec in self.stages()]
        if (self.reduce is None) != (self.excite is None):
            raise ValueError("squeeze-and-excitation needs both reduce and excite")
        if not stages:
            raise ValueError("a block needs at least one of expand, depthwise and project")
        for first, second in pairwise(stages):
            if first.out_channels != second.in_channels:
                raise ValueError(
                    f"stages do not fit: {first.out_channels} output channels feed {second.in_channels} input channels"
                )
        if self.depthwise is not None and not self.depthwise.depthwise:
            raise ValueError("the depthwise stage must have depthwise=True")
        for spec in (self.expand, self.project, self.reduce, self.excite):
            if spec is not None and spec.depthwise:
                raise ValueError("expand and project must be dense")
        if self.project is not None and (self.depthwise is None or self.project.kernel != (1, 1)):
            raise ValueError(
                "project is a 1x1 convolution after a depthwise stage; a lone 1x1 convolution is an expand"
            )
        if self.reduce is not None and self.excite is not None:
            if self.depthwise is None or self.project is None:
                raise ValueError("squeeze-and-excitation stands between a depthwise stage and its project")
            if self.reduce.kernel != (1, 1) or self.excite.kernel != (1, 1):
                raise ValueError("the layers of squeeze-and-excitation are 1x1")
        last = stages[-1]
        if self.residual_back and (self.residual or self.pool or last.activation not in CLAMPS or last.depthwise):
            raise ValueError(
                "a shortcut over two items excludes another, a pool, a late activation and a depthwise end"
            )
        if self.residual and self.in_channels != self.out_channels:
            raise ValueError(f"residual needs equal channels, got {self.in_channels} and {self.out_channels}")
        if self.pool and (len(stages) != 1 or self.expand is None or self.expand.kernel != (1, 1) or self.residual):
            raise ValueError("pool is allowed on a block that is a single 1x1 convolution without residual")

    def stages(self) -> Iterator[tuple[str, ConvSpec]]:
        for role in ROLES:
            spec = getattr(self, role)
            if spec is not None:
                yield role, spec

    @property
    def in_channels(self) -> int:
        return next(spec.in_channels for _, spec in self.stages())

    @property
    def out_channels(self) -> int:
        return [spec.out_channels for _, spec in self.stages()][-1]

    @property
    def kind(self) -> str:
        """How reports count the block: 'block' (two stages or more in one kernel) or 'conv' (one convolution)."""
        return "block" if len(list(self.stages())) > 1 else "conv"

    @property
    def squeezed(self) -> bool:
        """Whether squeeze-and-excitation stands before the project."""
        return self.excite is not None

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        for _, spec in self.stages():
            height, width = spec.output_size(height, width)
        return height, width


@dataclass(frozen=True)
class LinearSpec:
    """A fully connected layer on (N, in_features), with BatchNorm and activation where ``sources`` and ``activation``
    say so; its weight is (out, in) or (out, in, 1, 1)."""

    in_features: int
    out_features: int
    sources: tuple[str, ...] = ("weight", "conv_bias")
    activation: str = "none"
    eps: float = 0.0
    slope: float = 0.0

    def __post_init__(self) -> None:
        _check_sources(self.sources)

    def stages(self) -> Iterator[tuple[str, LinearSpec]]:
        """Itself, so that every item of a chain can be asked for its stages and their sources."""
        yield "linear", self

    def as_conv(self) -> ConvSpec:
        """The same layer as a 1x1 convolution on one pixel."""
        return ConvSpec(
            self.in_features,
            self.out_features,
            activation=self.activation,
            eps=self.eps,
            sources=self.sources,
            slope=self.slope,
        )


@dataclass(frozen=True)
class PoolSpec:
    """The mean over H and W of a chain's features, (N, C, H, W) to (N, C), where no 1x1 convolution can take it in."""

    channels: int

    @property
    def in_channels(self) -> int:
        return self.channels

    @property
    def out_channels(self) -> int:
        return self.channels

    def stages(self) -> Iterator[tuple[str, ConvSpec]]:
        """None: it has no tensors."""
        return iter(())


ChainItem = BlockSpec | LinearSpec | PoolSpec


def source_names(chain: Sequence[ChainItem]) -> list[str]:
    """The role of every tensor of the flat source list, in order."""
    names: list[str] = []
    for item in chain:
        for _, spec in item.stages():
            names += spec.sources
    return names


def encode(
    chain: Sequence[ChainItem], layout: str = "channels_last", transient: bool = False
) -> tuple[list[int], list[float]]:
    """The operator's integer program and its constants (per stage eps, then the slope of a ``leaky_relu``);
    csrc/cpu/program.h decodes it.

    ``layout`` is the memory format of the result: always channels_last, or that of the input.  ``transient`` asks not
    to keep the packed weights after the call.
    """
    program = [PROGRAM_VERSION, LAYOUTS[layout] | (_TRANSIENT if transient else 0), len(chain)]
    constants: list[float] = []
    for item in chain:
        if isinstance(item, PoolSpec):
            program += [_MEAN, item.channels]
            continue
        if isinstance(item, LinearSpec):
            mask = sum(_SOURCE_BITS[name] for name in item.sources)
            program += [_LINEAR, item.in_features, item.out_features, ACTIVATIONS[item.activation], mask]
            constants += _constants(item)
            continue
        stages = list(item.stages())
        flags = (_RESIDUAL if item.residual else 0) | (_POOL if item.pool else 0)
        program += [_BLOCK, flags | (_RESIDUAL_BACK if item.residual_back else 0), len(stages)]
        for role, spec in stages:
            program += spec.encode(role)
            constants += _constants(spec)
    return program, constants


def _constants(spec: ConvSpec | LinearSpec) -> list[float]:
    return [spec.eps, spec.slope] if spec.activation == "leaky_relu" else [spec.eps]


@dataclass(frozen=True)
class Program:
    """A decoded program: the chain and how its result lies in memory."""

    chain: tuple[ChainItem, ...]
    layout: str
    transient: bool

    @property
    def flat_output(self) -> bool:
        """Whether the result is (N, C) instead of (N, C, H, W)."""
        last = self.chain[-1]
        return not isinstance(last, BlockSpec) or last.pool


def decode(program: Sequence[int], constants: Sequence[float]) -> Program:
    """The inverse of :func:`encode`; expects what encode made (the native decoder is the one that checks)."""
    return _decode(tuple(program), tuple(constants))


@lru_cache(maxsize=1024)
def _decode(program: tuple[int, ...], constants: tuple[float, ...]) -> Program:
    values, eps = iter(program), iter(constants)
    _, flags, count = next(values), next(values), next(values)
    chain: list[ChainItem] = []
    for _ in range(count):
        code = next(values)
        if code == _MEAN:
            chain.append(PoolSpec(next(values)))
            continue
        if code == _LINEAR:
            features_in, features_out, code, mask = islice(values, 4)
            activation = _name_of(ACTIVATIONS, code)
            chain.append(LinearSpec(features_in, features_out, _names(mask), activation, *_read(eps, activation)))
            continue
        block_flags, stages = next(values), next(values)
        specs = {}
        for _ in range(stages):
            role, cin, cout, kh, kw, sh, sw, dh, dw, same, top, bottom, left, right, code, mask = islice(values, 16)
            activation = _name_of(ACTIVATIONS, code)
            stage_eps, slope = _read(eps, activation)
            specs[_name_of(ROLES, role)] = ConvSpec(
                cin, cout, (kh, kw), (sh, sw), (dh, dw), "same" if same else (top, bottom, left, right),
                role == ROLES["depthwise"], activation, stage_eps, _names(mask), slope,
            )  # fmt: skip
        flag = {"residual": _RESIDUAL, "pool": _POOL, "residual_back": _RESIDUAL_BACK}
        chain.append(BlockSpec(**specs, **{name: bool(block_flags & bit) for name, bit in flag.items()}))  # type: ignore[arg-type]
    return Program(tuple(chain), _name_of(LAYOUTS, flags & 1), bool(flags & _TRANSIENT))


def _read(constants: Iterator[float], activation: str) -> tuple[float, float]:
    return next(constants), next(constants) if activation == "leaky_relu" else 0.0


def _names(mask: int) -> tuple[str, ...]:
    return tuple(name for name, bit in _SOURCE_BITS.items() if mask & bit)


def _name_of(codes: dict[str, int], code: int) -> str:
    return next(name for name, value in codes.items() if value == code)
