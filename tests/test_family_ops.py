"""The kernels that the wider family needs, through the operator, against float64, forward and backward, on every ISA.

Activations, squeeze-and-excitation, shortcuts over two items, means without a convolution, several linear layers.
"""

import math

import pytest
import torch

from mobilenet_ext import _C
from mobilenet_ext.backends.aten import run_chain
from mobilenet_ext.spec import (
    ACTIVATIONS,
    BlockSpec,
    ConvSpec,
    LinearSpec,
    PoolSpec,
    decode,
    encode,
    source_names,
)
from mobilenet_ext.tolerance import check

BN = ("weight", "bn_weight", "bn_bias", "running_mean", "running_var")
BIASED = ("weight", "conv_bias")


def conv(cin, cout, kernel=1, stride=1, dilation=1, depthwise=False, activation="none", sources=BN):
    pad = (kernel - 1) * dilation // 2
    slope = 0.1 if activation == "leaky_relu" else 0.0
    return ConvSpec(
        cin, cout, (kernel, kernel), (stride, stride), (dilation, dilation), (pad,) * 4, depthwise, activation, 1e-3,
        sources, slope,
    )  # fmt: skip


def squeezed(cin, hidden, cout, kernel=3, stride=1, activation="silu", gate="sigmoid", reduced=5, residual=False):
    return BlockSpec(
        conv(cin, hidden, activation=activation),
        conv(hidden, hidden, kernel, stride, depthwise=True, activation=activation),
        conv(hidden, cout),
        residual=residual,
        reduce=conv(hidden, reduced, activation=activation, sources=BIASED),
        excite=conv(reduced, hidden, activation=gate, sources=BIASED),
    )


def inverted(cin, hidden, cout, activation="relu6", **flags):
    return BlockSpec(
        conv(cin, hidden, activation=activation),
        conv(hidden, hidden, 3, depthwise=True, activation=activation),
        conv(hidden, cout),
        **flags,
    )


START = BlockSpec(depthwise=conv(16, 16, 5, depthwise=True))
EDGE = BlockSpec(expand=conv(16, 30, 3, activation="silu"))
CHAINS = {
    "squeezed": (squeezed(12, 40, 12, residual=True),),
    "squeezed strided": (squeezed(9, 33, 21, 5, 2, "hardswish", "hardsigmoid", 8),),
    "no expand": (
        BlockSpec(
            depthwise=conv(19, 19, 3, depthwise=True, activation="hardswish"),
            project=conv(19, 24, activation="hardswish"),
            reduce=conv(19, 4, activation="relu", sources=BIASED),
            excite=conv(4, 19, activation="hardsigmoid", sources=BIASED),
        ),
    ),
    "universal": (START, inverted(16, 50, 16, residual_back=True)),
    "edge": (EDGE, BlockSpec(expand=conv(30, 16), residual_back=True)),
    "dilated": (BlockSpec(conv(8, 20, activation="hardswish"), conv(20, 20, 5, 1, 2, True, "hardswish"), conv(20, 8)),),
    "kernel 7": (BlockSpec(depthwise=conv(17, 17, 7, 2, depthwise=True, activation="silu"), project=conv(17, 9)),),
    "late head": (
        squeezed(16, 40, 24, activation="hardswish"),
        BlockSpec(expand=conv(24, 70, activation="hardswish"), pool=True),
        LinearSpec(70, 33, BN, "hardswish", 1e-3),
        LinearSpec(33, 11),
    ),
    "mean": (inverted(16, 40, 16, residual=True), PoolSpec(16), LinearSpec(16, 7, BIASED, "leaky_relu", 0.0, 0.2)),
    "deep": (
        EDGE, BlockSpec(expand=conv(30, 16), residual_back=True), START, inverted(16, 44, 16, residual_back=True),
        squeezed(16, 48, 16, residual=True), EDGE, BlockSpec(expand=conv(30, 16), residual_back=True),
    ),
}  # fmt: skip


def random_sources(chain):
    tensors = []
    for item in chain:
        for _, spec in item.stages():
            linear = isinstance(spec, LinearSpec)
            shape = (spec.out_features, spec.in_features) if linear else spec.weight_shape
            out = shape[0]
            values = {
                "weight": torch.randn(shape) / math.prod(shape[1:]) ** 0.5,
                "conv_bias": torch.randn(out),
                "bn_weight": 2 * torch.rand(out) + 0.5,
                "bn_bias": torch.randn(out) / 2,
                "running_mean": torch.randn(out) / 2,
                "running_var": torch.rand(out) + 0.5,
            }
            tensors += [values[name] for name in spec.sources]
    return tensors


def run(chain, x, sources, layout="channels_last"):
    return torch.ops.mobilenet_ext.chain(x, sources, None, *encode(chain, layout, transient=True))


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("size", [(1, 1), (7, 9), (15, 14)])
def test_chains_match_float64(isa, name, size):
    chain = CHAINS[name]
    x = 2 * torch.randn(2, chain[0].in_channels, *size)
    sources = random_sources(chain)
    result = check(run(chain, x, sources), chain, x, sources)
    assert result.ok, result
    # Weights rounded to float16 are what the comparison must be able to see.
    rounded = [s.half().float() for s in sources]
    assert not check(run(chain, x, rounded), chain, x, sources).ok


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("role", ["pointwise", "depthwise", "dense", "pooled", "linear"])
def test_every_activation_in_every_kernel(isa, activation, role):
    chain = {
        "pointwise": (BlockSpec(expand=conv(9, 37, activation=activation), residual=False),),
        "depthwise": (BlockSpec(depthwise=conv(21, 21, 5, 2, depthwise=True, activation=activation)),),
        "dense": (BlockSpec(expand=conv(3, 19, 3, 2, activation=activation)),),
        "pooled": (BlockSpec(expand=conv(9, 41, activation=activation), pool=True),),
        "linear": (
            PoolSpec(9),
            LinearSpec(9, 43, BN, activation, 1e-3, 0.3 if activation == "leaky_relu" else 0.0),
        ),
    }[role]
    x = 3 * torch.randn(3, chain[0].in_channels, 9, 11)
    sources = random_sources(chain)
    result = check(run(chain, x, sources), chain, x, sources)
    assert result.ok, result


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "slice", "expanded"])
@pytest.mark.parametrize("name", ["squeezed", "universal", "edge", "mean", "kernel 7"])
def test_layouts(name, layout):
    chain = CHAINS[name]
    channels = chain[0].in_channels
    x = {
        "contiguous": lambda: torch.randn(2, channels, 9, 8),
        "channels_last": lambda: torch.randn(2, channels, 9, 8).to(memory_format=torch.channels_last),
        "slice": lambda: torch.randn(2, channels + 3, 12, 9)[:, 1:-2, 1:-2, :8],
        "expanded": lambda: torch.randn(1, channels, 9, 1).expand(2, channels, 9, 8),
    }[layout]()
    sources = random_sources(chain)
    for result_layout in ("channels_last", "follow_input"):
        assert check(run(chain, x, sources, result_layout), chain, x, sources).ok


@pytest.mark.parametrize("name", CHAINS)
def test_same_bits_at_every_thread_count_and_place_in_the_batch(name):
    chain = CHAINS[name]
    x = torch.randn(1, chain[0].in_channels, 29, 31)
    sources = random_sources(chain)
    torch.set_num_threads(1)
    alone = run(chain, x, sources)
    for threads, batch in ((2, 1), (3, 1), (2, 5), (16, 3)):
        torch.set_num_threads(threads)
        assert all(torch.equal(y, alone[0]) for y in run(chain, x.expand(batch, -1, -1, -1), sources))


@pytest.mark.parametrize("name", CHAINS)
def test_vector_isas_agree_bit_for_bit(name):
    chain = CHAINS[name]
    x = torch.randn(2, chain[0].in_channels, 13, 17)
    sources = random_sources(chain)
    results = []
    try:
        for isa in [isa["name"] for isa in _C.isas() if isa["supported"]]:
            _C.set_isa_cap(isa)
            results.append(run(chain, x, sources))
    finally:
        _C.set_isa_cap(None)
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("name", CHAINS)
def test_gradients_match_autograd_in_float64(name):
    chain = CHAINS[name]
    x = torch.randn(2, chain[0].in_channels, 7, 8, requires_grad=True)
    trained = ["running" not in source for source in source_names(chain)]
    sources = [s.requires_grad_(t) for s, t in zip(random_sources(chain), trained, strict=True)]
    y = torch.ops.mobilenet_ext.chain_grad(x, sources, None, *encode(chain))
    weight = torch.randn_like(y)
    wanted = [x] + [s for s, t in zip(sources, trained, strict=True) if t]
    grads = torch.autograd.grad((y * weight).sum(), wanted)
    x64 = x.detach().double().requires_grad_()
    sources64 = [s.detach().double().requires_grad_(t) for s, t in zip(sources, trained, strict=True)]
    wanted64 = [x64] + [s for s, t in zip(sources64, trained, strict=True) if t]
    expected = torch.autograd.grad((run_chain(chain, x64, sources64) * weight.double()).sum(), wanted64)
    for got, want in zip(grads, expected, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-3, atol=1e-4 * want.abs().max().item())


def test_programs_are_read_back():
    for chain in CHAINS.values():
        assert decode(*encode(chain)).chain == chain


@pytest.mark.parametrize("name", ["squeezed", "edge", "late head"])
def test_opcheck(name):
    chain = CHAINS[name]
    x = torch.randn(2, chain[0].in_channels, 6, 7)
    arguments = (x, random_sources(chain), None, *encode(chain))
    torch.library.opcheck(torch.ops.mobilenet_ext.chain.default, arguments)
    torch.library.opcheck(
        torch.ops.mobilenet_ext.chain_grad.default,
        (x.requires_grad_(), *arguments[1:]),
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )


def test_empty_batches():
    assert run(CHAINS["squeezed"], torch.randn(0, 12, 8, 8), random_sources(CHAINS["squeezed"])).shape == (0, 12, 8, 8)
    assert run(CHAINS["late head"], torch.randn(0, 16, 8, 8), random_sources(CHAINS["late head"])).shape == (0, 11)


def test_nan_survives_squeeze_and_excitation():
    chain = CHAINS["squeezed"]
    x = torch.zeros(2, 12, 6, 6)
    x[1, 0, 0, 0] = math.nan
    y = run(chain, x, random_sources(chain))
    assert y[0].isfinite().all()
    assert y[1].isnan().all()  # the mean carries it to every pixel of its image


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"excite": None}, "needs both reduce and excite"),
        ({"project": None}, "stands between a depthwise stage and its project"),
        ({"residual_back": True}, "a shortcut over two items excludes another"),
    ],
)
def test_specs_that_cannot_be(change, message):
    block = CHAINS["squeezed"][0]
    fields = {name: getattr(block, name) for name in ("expand", "depthwise", "project", "reduce", "excite", "residual")}
    with pytest.raises(ValueError, match=message):
        BlockSpec(**{**fields, **change})


def test_residual_back_of_another_size_is_an_error():
    chain = (BlockSpec(expand=conv(16, 16, 3, 2)), BlockSpec(expand=conv(16, 16), residual_back=True))
    with pytest.raises(RuntimeError, match="residual needs an output of the input's size"):
        run(chain, torch.randn(1, 16, 8, 8), random_sources(chain))
