"""The tolerance accepts PyTorch's own float32 and rejects lost precision, wrong elements and misplaced NaN."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from mobilenet_ext import tolerance
from mobilenet_ext.backends import aten
from mobilenet_ext.loading import randomise
from mobilenet_ext.matchers import match_module, match_runs, source_tensors
from mobilenet_ext.spec import LinearSpec


def conv(inputs, outputs, kernel=1, stride=1, groups=1, activation=nn.ReLU6):
    layers = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return layers + ([activation()] if activation else [])


def block(inputs, hidden, outputs, kernel=3, stride=1):
    return [
        *conv(inputs, hidden),
        *conv(hidden, hidden, kernel, stride, hidden),
        *conv(hidden, outputs, activation=None),
    ]


NETWORKS = {
    "stem": (conv(3, 32, 3, 2), (2, 3, 30, 30)),
    "depthwise": (conv(64, 64, 3, 1, 64), (2, 64, 14, 14)),
    "pointwise": (conv(320, 1280), (2, 320, 7, 7)),
    "block": (block(32, 192, 32), (2, 32, 14, 14)),
    "block 5x5": (block(24, 144, 40, 5, 2), (2, 24, 15, 13)),
    "three blocks": ([*block(16, 96, 24), *block(24, 144, 24), *block(24, 144, 32, 3, 2)], (2, 16, 20, 20)),
    "network": (
        [
            *conv(3, 16, 3, 2),
            *block(16, 64, 32),
            *conv(32, 256),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(256, 50),
        ],
        (4, 3, 32, 32),
    ),
}


def build(name, seed=0, shape=None):
    torch.manual_seed(seed)
    layers, default = NETWORKS[name]
    network = nn.Sequential(*layers)
    for layer in network:
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    randomise(network, torch.randn(8, default[1], 16, 16))
    x = 2 * torch.randn(shape or default)
    match = match_module(network.eval()) or match_runs(network)[0].match
    return match.chain, x, [source.detach().clone() for source in source_tensors(network, match)]


def rounded(sources, dtype):
    return [s.to(dtype).to(s.dtype) if s.is_floating_point() and s.dim() > 1 else s for s in sources]


@pytest.mark.parametrize("name", NETWORKS)
def test_pytorch_float32_passes(name):
    chain, x, sources = build(name)
    result = tolerance.check(aten.run_chain(chain, x, sources), chain, x, sources)
    assert result.ok
    assert result.worst_ratio < 1
    assert result.sqnr_db > 100
    limit = tolerance.bound(chain, x, sources)
    assert limit.dtype == torch.float64
    assert (limit >= 0).all()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounded_weights_fail(name, dtype):
    chain, x, sources = build(name)
    result = tolerance.check(aten.run_chain(chain, x, rounded(sources, dtype)), chain, x, sources)
    assert not result.ok
    assert result.rms > 50 * result.rms_torch


@pytest.mark.parametrize("name", NETWORKS)
def test_folding_in_float32_of_exact_weights_passes(name):
    """What a fused kernel does: fold in float64, cast once, convolve in float32."""
    chain, x, sources = build(name)
    y = x
    for item, stages in aten.split(chain, sources):
        if isinstance(item, LinearSpec):
            y = torch.nn.functional.linear(y, *stages[0].values())
            continue
        for (_, spec), tensors in zip(item.stages(), stages, strict=True):
            weight, bias = (t.float() for t in tolerance.fold(spec, tensors))
            y = aten.activate(spec, aten.convolve(spec, y, weight, bias))
        y = y.mean((2, 3)) if item.pool else y
    assert tolerance.check(y, chain, x, sources).ok


@pytest.mark.parametrize("shape", [(1, 32, 1, 1), (1, 32, 2, 1)])
def test_small_outputs_pass_whatever_the_seed(shape):
    failures = 0
    for seed in range(12):
        chain, x, sources = build("block", seed, shape)
        failures += not tolerance.check(aten.run_chain(chain, x, sources), chain, x, sources).ok
    assert failures == 0


def test_one_wrong_element_fails():
    chain, x, sources = build("block")
    actual = aten.run_chain(chain, x, sources)
    limit = tolerance.bound(chain, x, sources)
    actual[1, 3, 2, 5] += 2 * limit[1, 3, 2, 5].float()
    result = tolerance.check(actual, chain, x, sources)
    assert not result.ok
    assert 1 < result.worst_ratio < 3.1


def test_a_clamped_element_has_to_be_exact():
    chain, x, sources = build("depthwise")
    exact = aten.run_chain(chain, x.double(), [s.double() for s in sources])
    limit = tolerance.bound(chain, x, sources)
    clamped = (exact == 0) | (exact == 6)
    assert clamped.any()
    assert (limit[clamped] == 0).double().mean() > 0.99
    actual = exact.float()
    actual[clamped] += 1e-9
    assert tolerance.check(actual, chain, x, sources).worst_ratio == math.inf


def test_nan_and_infinity_have_to_stand_where_the_reference_has_them():
    reference = torch.tensor([1.0, math.nan, math.inf, -math.inf], dtype=torch.float64)
    assert tolerance.compare(reference.float(), reference, 1e-7).ok
    for wrong in (
        [1.0, 0.0, math.inf, -math.inf],
        [math.nan, math.nan, math.inf, -math.inf],
        [1.0, math.nan, -math.inf, -math.inf],
    ):
        assert not tolerance.compare(torch.tensor(wrong), reference, 1e-7).ok


def test_nan_input_is_checked_around_the_nan():
    chain, x, sources = build("depthwise")
    x[0, 5, 3, 3] = math.nan
    actual = aten.run_chain(chain, x, sources)
    result = tolerance.check(actual, chain, x, sources)
    assert result.ok
    assert result.rms_torch > 0
    assert not tolerance.check(actual.nan_to_num(), chain, x, sources).ok


def test_empty_batch_and_wrong_shape():
    chain, x, sources = build("block")
    empty = x[:0]
    assert tolerance.check(aten.run_chain(chain, empty, sources), chain, empty, sources).ok
    with pytest.raises(ValueError, match=r"actual has shape \(2, 32, 14\); the reference has \(2, 32, 14, 14\)"):
        tolerance.check(x[:, :, 0], chain, x, sources)


def test_bound_grows_along_the_chain():
    chain, x, sources = build("three blocks")
    ratios = []
    for stop in range(1, len(chain) + 1):
        used = sum(len(spec.sources) for item in chain[:stop] for _, spec in item.stages())
        limit = tolerance.bound(chain[:stop], x, sources[:used])
        ratios.append((limit.mean() / aten.run_chain(chain[:stop], x, sources[:used]).abs().mean()).item())
    assert ratios == sorted(ratios)


def test_residual_and_pool_without_batch_norm():
    chain, x, sources = build("block")
    chain = (dataclasses.replace(chain[0], residual=True),)
    assert tolerance.check(aten.run_chain(chain, x, sources), chain, x, sources).ok


def test_an_infinity_where_the_reference_is_finite_is_wrong_and_no_error():
    result = tolerance.compare(torch.tensor([1.0, math.inf]), torch.tensor([1.0, 2.0], dtype=torch.float64), 0.0)
    assert not result.ok
    assert result.rms == math.inf
