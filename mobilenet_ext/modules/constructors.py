"""Fused modules that are built directly: the signatures and keys of the plain ones, with the fused path inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from mobilenet_ext.matchers import Match, match_module
from mobilenet_ext.models import DepthwiseSeparable, InvertedResidual
from mobilenet_ext.modules.chain import FusedChain
from mobilenet_ext.modules.mixin import RUNS, FusedModule, fused_method, register_fused_class, sharing_copy
from mobilenet_ext.modules.runs import find_runs, forward_runs
from mobilenet_ext.modules.structure import STATE

_Fused = TypeVar("_Fused", bound=FusedModule)
_Read = TypeVar("_Read")
_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "none": nn.Identity,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hardswish": nn.Hardswish,
    "silu": nn.SiLU,
    "hardsigmoid": nn.Hardsigmoid,
    "leaky_relu": nn.LeakyReLU,
    "sigmoid": nn.Sigmoid,
}


def _as_plain(module: FusedModule, read: Callable[[nn.Module], _Read]) -> _Read:
    """``read(module)`` while it has its plain class: matchers read plain classes."""
    cls: Any = type(module)
    module.__class__ = cls._plain_class
    try:
        return read(module)
    finally:
        module.__class__ = cls


def _attach(module: FusedModule) -> None:
    """Give a module under construction its chain; ValueError when no kernel covers its settings."""
    match = _as_plain(module, match_module)
    if not isinstance(match, Match):
        reason = "no matcher knows it" if match is None else match.reason
        raise ValueError(f"{type(module).__name__} cannot run fused: {reason}")
    object.__setattr__(module, STATE, FusedChain(module, match))


def _attach_runs(module: FusedModule) -> None:
    runs = _as_plain(module, find_runs)
    if runs is not None:
        object.__setattr__(module, STATE, runs)


def _from_reference(cls: type[_Fused], reference: Any, allowed: type[nn.Module]) -> _Fused:
    if not isinstance(reference, allowed) or isinstance(reference, FusedModule):
        name = f"{allowed.__module__}.{allowed.__qualname__}"
        raise TypeError(f"reference is a {type(reference).__name__}; allowed: {name} (fuse() takes any model)")
    module = cls.__new__(cls)
    vars(module).update(vars(sharing_copy(reference)))
    return module


@register_fused_class
class FusedInvertedResidual(FusedModule, InvertedResidual):
    """``mobilenet_ext.models.InvertedResidual`` as one fused kernel; the same signature and keys.

    Input (N, in_channel, H, W) in any memory format; output (N, out_channel, H', W') in channels_last.
    """

    _plain_class = InvertedResidual
    forward = fused_method(InvertedResidual)

    def __init__(self, in_channel: int, out_channel: int, stride: int, expand_ratio: int) -> None:
        super().__init__(in_channel, out_channel, stride, expand_ratio)
        _attach(self)

    @classmethod
    def from_reference(cls, reference: InvertedResidual) -> FusedInvertedResidual:
        """A fused block around the parameters and buffers of ``reference``, which stays as it is."""
        module = _from_reference(cls, reference, InvertedResidual)
        _attach(module)
        return module


@register_fused_class
class FusedDepthwiseSeparable(FusedModule, DepthwiseSeparable):
    """``mobilenet_ext.models.DepthwiseSeparable`` as one fused kernel; the same signature and keys.

    Input (N, in_channel, H, W) in any memory format; output (N, out_channel, H', W') in channels_last.
    """

    _plain_class = DepthwiseSeparable
    forward = fused_method(DepthwiseSeparable)

    def __init__(self, in_channel: int, out_channel: int, stride: int = 1) -> None:
        super().__init__(in_channel, out_channel, stride)
        _attach(self)

    @classmethod
    def from_reference(cls, reference: DepthwiseSeparable) -> FusedDepthwiseSeparable:
        """A fused block around the parameters and buffers of ``reference``, which stays as it is."""
        module = _from_reference(cls, reference, DepthwiseSeparable)
        _attach(module)
        return module


class ConvBNAct(nn.Sequential):
    """Conv2d, BatchNorm2d and an activation: the plain form of :class:`FusedConvBNAct`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 3,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | None = None,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        activation: str = "relu6",
        bias: bool = False,
        eps: float = 1e-5,
    ) -> None:
        """``padding`` None keeps the size at stride 1; ``activation`` is one of ``spec.ACTIVATIONS``."""
        if activation not in _ACTIVATIONS:
            raise ValueError(f"activation is {activation!r}; allowed: {', '.join(_ACTIVATIONS)}")
        if padding is None:
            kernels = (kernel_size,) * 2 if isinstance(kernel_size, int) else kernel_size
            dilations = (dilation,) * 2 if isinstance(dilation, int) else dilation
            padding = (dilations[0] * (kernels[0] - 1) // 2, dilations[1] * (kernels[1] - 1) // 2)
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias),
            nn.BatchNorm2d(out_channels, eps),
            _ACTIVATIONS[activation](),
        )


@register_fused_class
class FusedConvBNAct(FusedModule, ConvBNAct):
    """One convolution (dense or depthwise) with BatchNorm and activation as one kernel; keys of a Sequential of three.

    Input (N, in_channels, H, W) in any memory format; output (N, out_channels, H', W') in channels_last.
    ValueError for grouped convolutions other than depthwise.
    """

    _plain_class = ConvBNAct
    forward = fused_method(ConvBNAct)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _attach(self)

    @classmethod
    def from_reference(cls, reference: nn.Sequential) -> FusedConvBNAct:
        """A fused unit around the parameters and buffers of a Sequential of Conv2d, BatchNorm2d and activation."""
        module = _from_reference(cls, reference, nn.Sequential)
        _attach(module)
        return module


@register_fused_class
class FusedSequential(FusedModule, nn.Sequential):
    """``nn.Sequential(*modules)`` that runs consecutive supported children as one fused chain.

    A hook on a child of a run, or inside one, makes that run call its children one by one.
    """

    _plain_class = nn.Sequential
    _method = RUNS
    forward = forward_runs  # type: ignore[assignment]

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        _attach_runs(self)

    @classmethod
    def from_reference(cls, reference: nn.Sequential) -> FusedSequential:
        """A fused Sequential around the parameters and buffers of ``reference``, which stays as it is."""
        module = _from_reference(cls, reference, nn.Sequential)
        _attach_runs(module)
        return module
