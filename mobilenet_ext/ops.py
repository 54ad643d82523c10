"""Functional operators, and the fake kernels of the native ones.

The functional forms take tensors like their counterparts in :mod:`torch.nn.functional`, follow their input's memory
format and pack their weights on every call; modules (:func:`mobilenet_ext.fuse`) pack once.  fp32 on the CPU; other
dtypes and devices raise.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import autograd as _autograd
from ._library import native as _native
from .backends import aten as _aten
from .memory_format import in_format_of as _in_format_of
from .memory_format import memory_format_of as _memory_format_of
from .spec import ACTIVATIONS, BlockSpec, ConvSpec, LinearSpec, Padding, Program, decode, encode, source_names
from .training import depthwise as _depthwise
from .training import op as _training
from .training.run import no_training_kernel as _no_training_kernel
from .training.run import update_vectors as _update_vectors

IntPair = int | Sequence[int]


def _empty_result(x: Tensor, program: Program) -> Tensor:
    """An empty tensor of the shape and exactly the strides that the kernel returns."""
    if program.flat_output:
        last = program.chain[-1]
        return x.new_empty((x.shape[0], last.out_features if isinstance(last, LinearSpec) else last.out_channels))
    height, width = x.shape[2], x.shape[3]
    channels = x.shape[1]
    for item in program.chain:
        assert isinstance(item, BlockSpec)
        height, width = item.output_size(height, width)
        channels = item.out_channels
    planar = program.layout == "follow_input" and (
        x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last)
    )
    layout = torch.contiguous_format if planar else torch.channels_last
    return torch.empty((x.shape[0], channels, height, width), dtype=x.dtype, device=x.device, memory_format=layout)


def _fake_chain(
    x: Tensor, sources: list[Tensor], slot: Tensor | None, program: list[int], constants: list[float]
) -> Tensor:
    return _empty_result(x, decode(program, constants))


torch.library.register_fake("mobilenet_ext::chain", _fake_chain)
torch.library.register_fake("mobilenet_ext::chain_grad", _fake_chain)
_autograd.register()
_training.register()
_depthwise.register()
import_module("mobilenet_ext.backends.gpu.register")  # the chain operators for CUDA tensors


def _pair(name: str, value: IntPair, lowest: int) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or not all(isinstance(v, int) and v >= lowest for v in pair):
        raise ValueError(f"{name} is {value!r}; allowed: one or two integers of at least {lowest}")
    return pair[0], pair[1]


def _padding(value: str | IntPair, kernel: tuple[int, int], dilation: tuple[int, int]) -> Padding | str:
    """Padding as (top, bottom, left, right): an int, a pair (vertical, horizontal), all four, 'same' or 'valid'."""
    if value == "valid":
        return (0, 0, 0, 0)
    if value == "same":
        return "same"
    if isinstance(value, str):
        raise ValueError(f"padding is {value!r}; allowed: integers, 'same' or 'valid'")
    if not isinstance(value, int) and len(value) == 4:
        four = tuple(value)
        if not all(isinstance(v, int) and v >= 0 for v in four):
            raise ValueError(f"padding is {value!r}; allowed: integers of at least 0")
        return (four[0], four[1], four[2], four[3])
    vertical, horizontal = _pair("padding", value, 0)
    return (vertical, vertical, horizontal, horizontal)


def _check_input(x: Tensor, channels: int) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"x is a {type(x).__name__}; allowed: a torch.Tensor")
    if x.dim() != 4:
        raise ValueError(f"x has shape {tuple(x.shape)}; allowed: four dimensions (N, C, H, W)")
    if x.shape[1] != channels:
        raise ValueError(f"x has {x.shape[1]} channels; this weight takes {channels}")
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"x is {x.dtype}; allowed: torch.float32 (or torch.float64, by plain operators)")
    if x.device.type != "cpu":
        raise ValueError(f"x is on {x.device}; allowed: the CPU")


def _check(x: Tensor, block: BlockSpec, sources: list[Tensor]) -> None:
    _check_input(x, block.in_channels)
    _check_sources(x, source_names((block,)), sources)
    if block.residual and block.output_size(x.shape[2], x.shape[3]) != (x.shape[2], x.shape[3]):
        size = block.output_size(x.shape[2], x.shape[3])
        raise ValueError(f"residual is True with an output of {size} pixels; allowed: the input's {tuple(x.shape[2:])}")


def _check_sources(x: Tensor, names: Sequence[str], sources: list[Tensor]) -> None:
    for name, source in zip(names, sources, strict=True):
        if not isinstance(source, Tensor) or source.dtype != x.dtype or source.device.type != "cpu":
            kind = f"{source.dtype} on {source.device}" if isinstance(source, Tensor) else type(source).__name__
            raise TypeError(f"{name} is {kind}; allowed: a {x.dtype} tensor on the CPU")


def _run(x: Tensor, block: BlockSpec, sources: list[Tensor]) -> Tensor:
    """Under autocast the arithmetic stays fp32 and the result has the autocast dtype, as autocast's convolution has."""
    autocast = torch.is_autocast_enabled("cpu")
    if autocast:
        x = x.float()
    _check(x, block, sources)
    program, constants = encode((block,), "follow_input", transient=True)
    grad = torch.is_grad_enabled() and (x.requires_grad or any(t.requires_grad for t in sources))
    if _no_training_kernel((block,)) is not None:
        y = _run_untrained(x, block, sources, program, constants, grad)
    elif grad or x.dtype == torch.float64:
        batch = [0 for _ in block.stages()]
        y = torch.ops.mobilenet_ext.train_block(x, sources, None, program, constants, batch)[0]
        y = _in_format_of(y, x)
    else:
        y = torch.ops.mobilenet_ext.chain(x, sources, None, program, constants)
    return y.to(torch.get_autocast_dtype("cpu")) if autocast else y


def _run_untrained(
    x: Tensor, block: BlockSpec, sources: list[Tensor], program: list[int], constants: list[float], grad: bool
) -> Tensor:
    """A block with an activation that the training operator does not know: its backward is plain operators."""
    if x.dtype == torch.float64:
        return _aten.run_chain((block,), x, sources)
    op = torch.ops.mobilenet_ext.chain_grad if grad else torch.ops.mobilenet_ext.chain
    return op(x, sources, None, program, constants)


def _depthwise_spec(
    weight: tuple[int, ...],
    stride: IntPair,
    padding: str | IntPair,
    dilation: IntPair,
    activation: str,
    eps: float,
    sources: tuple[str, ...],
) -> ConvSpec:
    """Of a weight of this shape."""
    if len(weight) != 4 or weight[1] != 1:
        raise ValueError(f"weight has shape {weight}; allowed: (C, 1, kH, kW)")
    allowed = [name for name in ACTIVATIONS if name != "leaky_relu"]  # which would need its slope
    if activation not in allowed:
        raise ValueError(f"activation is {activation!r}; allowed: {', '.join(allowed)}")
    kernel = (weight[2], weight[3])
    return ConvSpec(
        weight[0],
        weight[0],
        kernel,
        _pair("stride", stride, 1),
        _pair("dilation", dilation, 1),
        _padding(padding, kernel, _pair("dilation", dilation, 1)),
        depthwise=True,
        activation=activation,
        eps=eps,
        sources=sources,
    )


def _present(tensors: dict[str, Tensor | None]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def _plain_depthwise(
    weight: tuple[int, ...], has_bias: bool, stride: IntPair, padding: str | IntPair, dilation: IntPair
) -> ConvSpec:
    sources = ("weight", "conv_bias") if has_bias else ("weight",)
    return _depthwise_spec(weight, stride, padding, dilation, "none", 0.0, sources)


# Making and checking one takes as long as a small layer.
_cached_plain_depthwise = lru_cache(maxsize=256)(_plain_depthwise)


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntPair = 1,
    padding: str | IntPair = 0,
    dilation: IntPair = 1,
) -> Tensor:
    """Depthwise convolution: ``torch.nn.functional.conv2d(x, weight, bias, ..., groups=C)``.

    Args:
        x: (N, C, H, W) fp32, any strides.
        weight: (C, 1, kH, kW) fp32.
        bias: (C,) fp32 or None.
        stride, dilation: in pixels, an int or (vertical, horizontal).
        padding: in pixels, an int, (vertical, horizontal), (top, bottom, left, right), ``"valid"``, or ``"same"``
            (TensorFlow's rule: the output has ceil(input / stride) pixels, the odd padding pixel at bottom and right).

    Returns: (N, C, H', W') fp32 in the memory format of ``x``.

    Raises ValueError or TypeError naming the argument, its value and what is allowed.
    """
    if torch.compiler.is_compiling():
        spec = _plain_depthwise(tuple(weight.shape), bias is not None, stride, padding, dilation)
    else:
        spec = _cached_plain_depthwise(
            tuple(weight.shape), bias is not None, _hashable(stride), _hashable(padding), _hashable(dilation)
        )
    sources = [weight] if bias is None else [weight, bias]
    autocast = torch.is_autocast_enabled("cpu")
    inputs = x.float() if autocast and isinstance(x, Tensor) else x
    wants = torch.is_grad_enabled() and isinstance(x, Tensor) and any(t.requires_grad for t in (x, *sources))
    # On channels_last memory the operator with gradients is the faster one for everybody: it folds nothing and walks
    # rows as they lie. Planes are read by the chain, without a copy.
    rows = isinstance(x, Tensor) and x.device.type == "cpu" and x.dtype == torch.float32
    rows = rows and x.dim() == 4 and _memory_format_of(x) == torch.channels_last
    if not (wants or rows) or min(spec.output_size(x.shape[2], x.shape[3])) < 1:
        return _run(x, BlockSpec(depthwise=spec), sources)
    _check_input(inputs, spec.in_channels)
    _check_sources(inputs, spec.sources, sources)
    pads = _aten.paddings(spec, x.shape[2], x.shape[3])
    geometry = [*spec.kernel, *spec.stride, *spec.dilation, *pads]
    y = torch.ops.mobilenet_ext.depthwise_conv2d(inputs, weight, bias, geometry)
    y = y if rows else _in_format_of(y, inputs)
    return y.to(torch.get_autocast_dtype("cpu")) if autocast else y


def depthwise_conv_bn_act(
    x: Tensor,
    weight: Tensor,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    eps: float = 1e-5,
    stride: IntPair = 1,
    padding: str | IntPair = 0,
    dilation: IntPair = 1,
    activation: str = "relu6",
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
) -> Tensor:
    """Depthwise convolution, BatchNorm, activation as one differentiable operator.

    The counterpart of ``act(F.batch_norm(F.conv2d(x, weight, bias, ..., groups=C), running_mean, running_var,
    bn_weight, bn_bias, training, momentum, eps))``.  Arguments as in :func:`depthwise_conv2d`; the BatchNorm vectors
    are (C,) fp32; ``activation`` is ``"none"``, ``"relu"``, ``"relu6"``, ``"hardswish"``, ``"silu"``,
    ``"hardsigmoid"`` or ``"sigmoid"``, the last four composed of separate operators with ``training``.  With
    ``training`` BatchNorm takes the statistics of the batch, and the running ones, unless both are None, are updated
    in place.

    Returns: (N, C, H', W') fp32 in the memory format of ``x``.
    """
    given = (running_mean, running_var)
    if training and running_mean is None and running_var is None:
        running_mean, running_var = weight.new_zeros(weight.shape[0]), weight.new_ones(weight.shape[0])
    if running_mean is None or running_var is None:
        raise ValueError("running_mean or running_var is None; allowed: the running statistics, both tensors of (C,)")
    vectors = {
        "conv_bias": bias,
        "bn_weight": bn_weight,
        "bn_bias": bn_bias,
        "running_mean": running_mean,
        "running_var": running_var,
    }
    present = _present({"weight": weight, **vectors})
    spec = _depthwise_spec(tuple(weight.shape), stride, padding, dilation, activation, eps, tuple(present))
    sources = list(present.values())
    if not training:
        return _run(x, BlockSpec(depthwise=spec), sources)
    autocast = torch.is_autocast_enabled("cpu")
    inputs = x.float() if autocast else x
    block = BlockSpec(depthwise=spec)
    _check(inputs, block, sources)
    if _no_training_kernel((block,)) is not None:
        with torch.autocast("cpu", enabled=False):
            y = _aten.convolve(spec, inputs, weight, bias)
            y = F.batch_norm(y, *given, bn_weight, bn_bias, True, momentum, eps)
            y = _in_format_of(_aten.activate(spec, y), inputs)
        return y.to(torch.get_autocast_dtype("cpu")) if autocast else y
    program, constants = encode((block,))
    y, _, _, stats = torch.ops.mobilenet_ext.train_block(inputs, sources, None, program, constants, [1])
    if given[0] is not None and given[1] is not None:
        stats = stats.detach()
        with torch.no_grad():
            _update_vectors(given[0], given[1], stats[0], stats[2], momentum, None)
    y = _in_format_of(y, inputs)
    return y.to(torch.get_autocast_dtype("cpu")) if autocast else y


BatchNormVectors = tuple[Tensor | None, Tensor | None, Tensor, Tensor]


def inverted_residual(
    x: Tensor,
    expand: tuple[Tensor, BatchNormVectors] | None,
    depthwise: tuple[Tensor, BatchNormVectors],
    project: tuple[Tensor, BatchNormVectors],
    eps: float = 1e-5,
    stride: IntPair = 1,
    padding: str | IntPair = 1,
    dilation: IntPair = 1,
    activation: str = "relu6",
    residual: bool = False,
) -> Tensor:
    """MobileNetV2's inverted residual (arXiv 1801.04381, section 3.3) in one kernel, BatchNorm with running statistics.

    Args:
        x: (N, C, H, W) fp32, any strides.
        expand: None, or (weight (t*C, C, 1, 1), (bn weight, bn bias, running mean, running var)).
        depthwise: (weight (t*C, 1, kH, kW), the same four vectors); ``stride``, ``padding``, ``dilation`` are its.
        project: (weight (C', t*C, 1, 1), the same four vectors); linear, as the paper's bottleneck is.
        activation: after expand and depthwise, as in :func:`depthwise_conv_bn_act`.
        residual: add ``x`` to the result; needs stride 1 and C' == C.

    Returns: (N, C', H', W') fp32 in the memory format of ``x``.
    """

    def dense(name: str, pair: tuple[Tensor, BatchNormVectors], act: str) -> tuple[ConvSpec, list[Tensor]]:
        weight, vectors = pair
        if weight.dim() != 4 or weight.shape[2:] != (1, 1):
            raise ValueError(f"{name} weight has shape {tuple(weight.shape)}; allowed: (out, in, 1, 1)")
        present = {"weight": weight, **named(vectors)}
        spec = ConvSpec(weight.shape[1], weight.shape[0], activation=act, eps=eps, sources=tuple(present))
        return spec, list(present.values())

    def named(vectors: BatchNormVectors) -> dict[str, Tensor]:
        names = ("bn_weight", "bn_bias", "running_mean", "running_var")
        return {n: v for n, v in zip(names, vectors, strict=True) if v is not None}

    expand_spec, sources = dense("expand", expand, activation) if expand is not None else (None, [])
    weight, vectors = depthwise
    present = _present({"weight": weight, **dict(named(vectors))})
    depthwise_spec = _depthwise_spec(tuple(weight.shape), stride, padding, dilation, activation, eps, tuple(present))
    depthwise_sources = list(present.values())
    project_spec, project_sources = dense("project", project, "none")
    if residual and depthwise_spec.stride != (1, 1):
        raise ValueError(f"residual is True with stride {depthwise_spec.stride}; allowed: stride 1")
    block = BlockSpec(expand_spec, depthwise_spec, project_spec, residual=residual)
    return _run(x, block, [*sources, *depthwise_sources, *project_sources])


def isa() -> str:
    """The instruction set that the CPU kernels use now: the best the machine has, at or below the cap."""
    return str(_native.isa())
