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

PROGRAM_VERSION = 1

# Codes shared with csrc/cpu/program.h.
ACTIVATIONS: dict[str, int] = {"none": 0, "relu": 1, "relu6": 2}
ROLES: dict[str, int] = {"expand": 0, "depthwise": 1, "project": 2}
LAYOUTS: dict[str, int] = {"channels_last": 0, "follow_input": 1}
_BLOCK, _LINEAR = 1, 2
_RESIDUAL, _POOL = 1, 2
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
    without ``running_mean`` the stage has no BatchNorm.
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

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation is {self.activation!r}; allowed: {', '.join(ACTIVATIONS)}")
        if isinstance(self.padding, str) and self.padding != "same":
            raise ValueError(f"padding is {self.padding!r}; allowed: four integers or 'same'")
        if self.depthwise and self.in_channels != self.out_channels:
            raise ValueError(
                f"a depthwise stage keeps the channel count; got {self.in_channels} and {self.out_channels}"
            )
        order = [name for name in _SOURCE_BITS if name in self.sources]
        if tuple(order) != self.sources or self.sources[:1] != ("weight",):
            raise ValueError(
                f"sources is {self.sources}; allowed: 'weight' first, then any of {list(_SOURCE_BITS)[1:]} in order"
            )

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


@dataclass(frozen=True)
class BlockSpec:
    """expand (dense, any kernel) -> depthwise -> project (1x1), each optional but not all; then pool or residual.

    A single dense convolution is a block with only ``expand``; a depthwise-separable block has no ``expand``.
    ``residual`` adds the block's input to its output; ``pool`` replaces the output (N, C, H, W) by its mean over H
    and W, shape (N, C), and is allowed on a block that is a single 1x1 convolution.
    """

    expand: ConvSpec | None = None
    depthwise: ConvSpec | None = None
    project: ConvSpec | None = None
    residual: bool = False
    pool: bool = False

    def __post_init__(self) -> None:
        stages = [spec for _, spec in self.stages()]
        if not stages:
            raise ValueError("a block needs at least one of expand, depthwise and project")
        for first, second in pairwise(stages):
            if first.out_channels != second.in_channels:
                raise ValueError(
                    f"stages do not fit: {first.out_channels} output channels feed {second.in_channels} input channels"
                )
        if self.depthwise is not None and not self.depthwise.depthwise:
            raise ValueError("the depthwise stage must have depthwise=True")
        for spec in (self.expand, self.project):
            if spec is not None and spec.depthwise:
                raise ValueError("expand and project must be dense")
        if self.project is not None and (self.depthwise is None or self.project.kernel != (1, 1)):
            raise ValueError(
                "project is a 1x1 convolution after a depthwise stage; a lone 1x1 convolution is an expand"
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

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        for _, spec in self.stages():
            height, width = spec.output_size(height, width)
        return height, width


@dataclass(frozen=True)
class LinearSpec:
    """A fully connected layer on (N, in_features); ``sources`` is ("weight",) or ("weight", "conv_bias")."""

    in_features: int
    out_features: int
    sources: tuple[str, ...] = ("weight", "conv_bias")


ChainItem = BlockSpec | LinearSpec


def source_names(chain: Sequence[ChainItem]) -> list[str]:
    """The role of every tensor of the flat source list, in order."""
    names: list[str] = []
    for item in chain:
        if isinstance(item, LinearSpec):
            names += item.sources
        else:
            for _, spec in item.stages():
                names += spec.sources
    return names


def encode(
    chain: Sequence[ChainItem], layout: str = "channels_last", transient: bool = False
) -> tuple[list[int], list[float]]:
    """The operator's integer program and its constants (one eps per stage); csrc/cpu/program.h decodes it.

    ``layout`` is the memory format of the result: always channels_last, or that of the input.  ``transient`` asks not
    to keep the packed weights after the call.
    """
    program = [PROGRAM_VERSION, LAYOUTS[layout] | (_TRANSIENT if transient else 0), len(chain)]
    constants: list[float] = []
    for item in chain:
        if isinstance(item, LinearSpec):
            mask = sum(_SOURCE_BITS[name] for name in item.sources)
            program += [_LINEAR, item.in_features, item.out_features, mask]
            constants.append(0.0)
            continue
        stages = list(item.stages())
        program += [_BLOCK, (_RESIDUAL if item.residual else 0) | (_POOL if item.pool else 0), len(stages)]
        for role, spec in stages:
            program += spec.encode(role)
            constants.append(spec.eps)
    return program, constants


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
        return isinstance(last, LinearSpec) or last.pool


def decode(program: Sequence[int], constants: Sequence[float]) -> Program:
    """The inverse of :func:`encode`; expects what encode made (the native decoder is the one that checks)."""
    return _decode(tuple(program), tuple(constants))


@lru_cache(maxsize=1024)
def _decode(program: tuple[int, ...], constants: tuple[float, ...]) -> Program:
    values, eps = iter(program), iter(constants)
    _, flags, count = next(values), next(values), next(values)
    chain: list[ChainItem] = []
    for _ in range(count):
        if next(values) == _LINEAR:
            next(eps)
            chain.append(LinearSpec(next(values), next(values), _names(next(values))))
            continue
        block_flags, stages = next(values), next(values)
        specs = {}
        for _ in range(stages):
            role, cin, cout, kh, kw, sh, sw, dh, dw, same, top, bottom, left, right, activation, mask = islice(
                values, 16
            )
            specs[_name_of(ROLES, role)] = ConvSpec(
                cin, cout, (kh, kw), (sh, sw), (dh, dw), "same" if same else (top, bottom, left, right),
                role == ROLES["depthwise"], _name_of(ACTIVATIONS, activation), next(eps), _names(mask),
            )  # fmt: skip
        chain.append(BlockSpec(**specs, residual=bool(block_flags & _RESIDUAL), pool=bool(block_flags & _POOL)))
    return Program(tuple(chain), _name_of(LAYOUTS, flags & 1), bool(flags & _TRANSIENT))


def _names(mask: int) -> tuple[str, ...]:
    return tuple(name for name, bit in _SOURCE_BITS.items() if mask & bit)


def _name_of(codes: dict[str, int], code: int) -> str:
    return next(name for name, value in codes.items() if value == code)
