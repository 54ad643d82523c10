"""How far a float32 result may be from the float64 one: the only place with the formula.

Two conditions, both needed:

* every element within ``2 * eps * sqrt(K) * sum |w||x|`` of the float64 result, where K is the number of terms of the
  sum, the magnitudes come from a float64 run on absolute values, and the errors of earlier stages are propagated;
* the root mean square error at most twice that of PyTorch's own run in the same precision.

The first finds single wrong elements, the second finds precision lost everywhere (weights rounded to float16 are
within the first for long sums, and a thousand times outside the second).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mobilenet_ext.backends import aten
from mobilenet_ext.folding import fold
from mobilenet_ext.spec import CLAMPS, SQUEEZE_ROLES, BlockSpec, ChainItem, ConvSpec, LinearSpec, PoolSpec

RMS_FACTOR = 2.0
_ENOUGH = 4096  # outputs from which an RMS error is a steady number
_MAX_REPEATS = 16


@dataclass(frozen=True)
class Comparison:
    """A result against float64.

    ``max_rel`` is the largest error over the largest magnitude of the reference; ``sqnr_db`` is infinite for equal
    results; ``rms_torch`` is PyTorch's own RMS error in the same precision; ``worst_ratio`` is the largest error over
    its bound, None where no chain describes the module and only the RMS condition holds.
    """

    max_abs: float
    max_rel: float
    sqnr_db: float
    rms: float
    rms_torch: float
    worst_ratio: float | None
    ok: bool


def bound(
    chain: Sequence[ChainItem], x: Tensor, sources: Sequence[Tensor], dtype: torch.dtype = torch.float32
) -> Tensor:
    """The elementwise bound, float64, in the shape of the chain's output, for arithmetic in ``dtype``."""
    eps = torch.finfo(dtype).eps
    value = x.detach().double()
    error = torch.zeros_like(value)
    before = (value, error)
    with torch.no_grad():
        for item, stages in aten.split(chain, sources):
            if isinstance(item, PoolSpec):
                value, error = (t.flatten(1) for t in _mean(value, error, eps))
            elif isinstance(item, LinearSpec):
                value, error = _linear(item, value, error, stages[0], eps)
            else:
                entry = (value, error)
                value, error = _block(item, value, error, stages, eps, before if item.residual_back else entry)
                before = entry
    return error


def _mean(value: Tensor, error: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    terms = value.shape[2] * value.shape[3]
    error = error.mean((2, 3), keepdim=True) + 2 * eps * math.sqrt(terms) * value.abs().mean((2, 3), keepdim=True)
    return value.mean((2, 3), keepdim=True), error


def _block(
    block: BlockSpec,
    value: Tensor,
    error: Tensor,
    stages: Sequence[Mapping[str, Tensor]],
    eps: float,
    shortcut: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    entry_value, entry_error = shortcut
    scale, scale_error = value, error
    for (role, spec), tensors in zip(block.stages(), stages, strict=True):
        if role not in SQUEEZE_ROLES:
            value, error = _stage(spec, value, error, tensors, eps)
            continue
        if role == "reduce":
            scale, scale_error = _mean(value, error, eps)
        scale, scale_error = _stage(spec, scale, scale_error, tensors, eps)
        if role == "excite":
            error = error * (scale.abs() + scale_error) + value.abs() * scale_error + eps * (value * scale).abs()
            value = value * scale
    if block.residual or block.residual_back:
        error = error + entry_error + 2 * eps * (value.abs() + entry_value.abs())
        value = value + entry_value
    if block.pool:
        value, error = (t.flatten(1) for t in _mean(value, error, eps))
    return value, error


def _stage(
    spec: ConvSpec, value: Tensor, error: Tensor, tensors: Mapping[str, Tensor], eps: float
) -> tuple[Tensor, Tensor]:
    weight, bias = fold(spec, tensors)
    # The mean enters with a minus sign: with -|mean| every term of the folded bias adds up in magnitude.
    magnitudes = {name: -t.abs() if name == "running_mean" else t.abs() for name, t in tensors.items()}
    weight_magnitude, bias_magnitude = fold(spec, magnitudes)
    terms = math.prod(spec.weight_shape[1:]) + ("conv_bias" in tensors) + 2 * spec.has_bn
    magnitude = aten.convolve(spec, value.abs(), weight_magnitude, bias_magnitude)
    error = aten.convolve(spec, error, weight_magnitude, None) + 2 * eps * math.sqrt(terms) * magnitude
    value = aten.convolve(spec, value, weight, bias)
    return _activation(spec, value, error, eps)


# Where an activation that is not monotone has its minimum.
_TURNS = {"hardswish": -1.5, "silu": -1.2784645427610738}
# What exp(-x) beyond the range of fp32 makes of SiLU and sigmoid, which are that small there.
_UNDERFLOW = 32 * torch.finfo(torch.float32).tiny
_ROUNDINGS = 2  # of an activation that is no clamp, in units of eps; csrc/tests/test_activation.cpp measures it


def _activation(spec: ConvSpec | LinearSpec, value: Tensor, error: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The error after an activation: how far the ends of the interval move, and its turning point inside."""
    low, middle, high = (aten.activate(spec, end) for end in (value - error, value, value + error))
    moved = torch.maximum((high - middle).abs(), (middle - low).abs())
    turn = _TURNS.get(spec.activation)
    if turn is not None:
        lowest = aten.activate(spec, torch.full_like(value, turn))
        inside = (value - turn).abs() <= error
        moved = torch.where(inside, torch.maximum(moved, middle - lowest), moved)
    if spec.activation not in CLAMPS:
        moved = moved + _ROUNDINGS * eps * middle.abs() + _UNDERFLOW
    return middle, moved


def _linear(
    spec: LinearSpec, value: Tensor, error: Tensor, tensors: Mapping[str, Tensor], eps: float
) -> tuple[Tensor, Tensor]:
    tensors = {**tensors, "weight": tensors["weight"].reshape(spec.out_features, spec.in_features, 1, 1)}
    value, error = _stage(spec.as_conv(), value[:, :, None, None], error[:, :, None, None], tensors, eps)
    return value.flatten(1), error.flatten(1)


def check(
    actual: Tensor, chain: Sequence[ChainItem], x: Tensor, sources: Sequence[Tensor], dtype: torch.dtype = torch.float32
) -> Comparison:
    """Compare ``actual``, the chain's result on ``x`` in arithmetic of ``dtype``, with float64 under both conditions.

    ``x`` and ``sources`` are what ``actual`` was computed from; they are exact inputs of the float64 run.  ValueError
    if the shape of ``actual`` is not that of the chain's output.
    """
    return compare(actual, *expectation(chain, x, sources, dtype), dtype)


def expectation(
    chain: Sequence[ChainItem], x: Tensor, sources: Sequence[Tensor], dtype: torch.dtype = torch.float32
) -> tuple[Tensor, float, Tensor]:
    """What :func:`compare` needs: the float64 result, PyTorch's RMS error in ``dtype``, and the elementwise bound."""
    exact = [source.detach().double() if source.is_floating_point() else source for source in sources]
    rough = [source.detach().to(dtype) if source.is_floating_point() else source for source in sources]

    def run(tensors: Sequence[Tensor], image: Tensor) -> Tensor:
        return aten.run_chain(chain, image, tensors)

    with torch.no_grad():
        reference = run(exact, x.detach().double())
        rms_torch = 0.0
        if reference.numel():
            # A few outputs give a noisy RMS: repeat PyTorch's run on inputs that differ in the last digits only.
            repeats = min(_MAX_REPEATS, -(-_ENOUGH // reference.numel()))
            generator = torch.Generator(device="cpu").manual_seed(0)
            squares = []
            for repeat in range(repeats):
                image = x.detach().to(dtype)
                if repeat:
                    noise = torch.rand(image.shape, generator=generator, dtype=torch.float32)
                    image = image * (1 + 2**-8 * noise).to(image)
                squares.append((run(rough, image).double() - run(exact, image.double())).square().nanmean())
            rms_torch = math.sqrt(torch.stack(squares).nanmean().item())
    return reference, rms_torch, bound(chain, x, sources, dtype)


def compare(
    actual: Tensor,
    reference: Tensor,
    rms_torch: float,
    limit: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Comparison:
    """Compare with a float64 ``reference`` given PyTorch's RMS error and, if known, the elementwise ``limit``.

    NaN and infinities must stand where the reference has them, and count in no number.  The RMS error may always reach
    what rounding an exact result to ``dtype`` can cause, and, with few outputs, what chance adds to it.
    ValueError if the shapes differ.
    """
    if actual.shape != reference.shape:
        raise ValueError(f"actual has shape {tuple(actual.shape)}; the reference has {tuple(reference.shape)}")
    actual = actual.detach().double()
    finite = reference.isfinite()
    placed = torch.equal(actual[~finite].nan_to_num(), reference[~finite].nan_to_num())
    placed = placed and torch.equal(actual.isnan(), reference.isnan())
    reference, actual = reference[finite], actual[finite]
    if not reference.numel():
        return Comparison(0.0, 0.0, math.inf, 0.0, rms_torch, None if limit is None else 0.0, placed)
    error = (actual - reference).abs()
    largest, rms = error.max().item(), error.square().mean().sqrt().item()
    scale, signal = reference.abs().max().item(), reference.square().mean().sqrt().item()
    max_rel = largest / scale if scale else (0.0 if largest == 0 else math.inf)
    ratio = signal / rms if rms and math.isfinite(rms) else 0.0
    sqnr = 20 * math.log10(ratio) if ratio else (-math.inf if rms else math.inf)
    worst = None
    if limit is not None:
        # Where both are zero the ratio is zero; an error without any allowance is infinitely too large.
        worst = torch.where(error == 0, 0.0, error / limit[finite]).max().item()
    rounding = torch.finfo(dtype).eps / 2 * signal
    allowed = RMS_FACTOR * (1 + 2 / math.sqrt(error.numel())) * max(rms_torch, rounding)
    ok = placed and rms <= allowed and (worst is None or worst <= 1)
    return Comparison(largest, max_rel, sqnr, rms, rms_torch, worst, ok)
