"""The native operators and their functional forms: values, bits, layouts, strides, gradients, errors."""

import itertools
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mobilenet_ext import ops
from mobilenet_ext._library import native
from mobilenet_ext.backends.aten import run_chain
from mobilenet_ext.spec import BlockSpec, ConvSpec, LinearSpec, decode, encode, source_names
from mobilenet_ext.tolerance import check

BN = ("weight", "bn_weight", "bn_bias", "running_mean", "running_var")
EVERY_SOURCE = ("weight", "conv_bias", *BN[1:], "num_batches_tracked")
LAYOUTS = ("contiguous", "channels_last", "slice", "expanded")


def random_sources(chain):
    """Signed and scaled so that both clamps of ReLU6 bite."""
    tensors = []
    for item in chain:
        if isinstance(item, LinearSpec):
            tensors += [
                torch.randn(item.out_features, item.in_features) / math.sqrt(item.in_features),
                torch.randn(item.out_features),
            ]
            continue
        for _, spec in item.stages():
            fan = math.prod(spec.weight_shape[1:])
            values = {
                "weight": torch.randn(spec.weight_shape) / math.sqrt(fan),
                "conv_bias": torch.randn(spec.out_channels),
                "bn_weight": torch.rand(spec.out_channels) * 3 + 1,
                "bn_bias": torch.randn(spec.out_channels) + 1,
                "running_mean": torch.randn(spec.out_channels) / 2,
                "running_var": torch.rand(spec.out_channels) + 0.5,
                "num_batches_tracked": torch.tensor(3),
            }
            tensors += [values[name] for name in spec.sources]
    return tensors


def make_input(shape, layout):
    n, c, h, w = shape
    if layout == "channels_last":
        return (2 * torch.randn(shape)).to(memory_format=torch.channels_last)
    if layout == "slice":
        return 2 * torch.randn(n, c + 2, h + 3, w + 1)[:, 1:-1, 1:-2, :w]
    if layout == "expanded":
        return 2 * torch.randn(1, c, h, 1).expand(n, c, h, w)
    return 2 * torch.randn(shape)


def run(chain, x, sources, layout="channels_last", slot=None):
    program, constants = encode(chain, layout)
    return torch.ops.mobilenet_ext.chain(x, sources, slot, program, constants)


def inverted(cin, hidden, cout, kernel=3, stride=1, padding=None, activation="relu6", residual=False, dilation=1):
    pads = padding or ((kernel - 1) * dilation // 2,) * 4
    geometry = ((kernel, kernel), (stride, stride), (dilation, dilation), pads)
    return BlockSpec(
        None if hidden == cin else ConvSpec(cin, hidden, activation=activation, eps=1e-5, sources=BN),
        ConvSpec(hidden, hidden, *geometry, True, activation, 1e-3, BN),
        ConvSpec(hidden, cout, eps=1e-5, sources=BN),
        residual=residual,
    )


def network(cin=3):
    stem = ConvSpec(cin, 16, (3, 3), (2, 2), (1, 1), (1, 1, 1, 1), activation="relu6", eps=1e-5, sources=BN)
    first = inverted(16, 16, 8)
    return (
        BlockSpec(stem, first.depthwise, first.project),
        inverted(8, 48, 24, stride=2),
        inverted(24, 144, 24, residual=True),
        BlockSpec(expand=ConvSpec(24, 40, activation="relu6", eps=1e-5, sources=BN), pool=True),
        LinearSpec(40, 11),
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [1, 7, 15])
@pytest.mark.parametrize(
    "block",
    [
        inverted(16, 96, 24, stride=2),
        inverted(17, 100, 17, residual=True),
        inverted(24, 24, 40, kernel=5, padding="same", stride=2, activation="relu"),
        inverted(9, 27, 9, dilation=2, residual=True),
        BlockSpec(expand=ConvSpec(13, 21, activation="relu6", eps=1e-5, sources=EVERY_SOURCE)),
        BlockSpec(expand=ConvSpec(3, 20, (3, 3), (2, 2), (1, 1), "same", activation="relu", sources=EVERY_SOURCE[:2])),
        BlockSpec(depthwise=ConvSpec(19, 19, (3, 3), (1, 1), (1, 1), (0, 2, 1, 3), True, "none", 1e-5, BN)),
    ],
    ids=lambda block: "+".join(role for role, _ in block.stages()) + f"-{block.in_channels}",
)  # fmt: skip
def test_blocks_match_float64(isa, block, size, layout):
    x = make_input((2, block.in_channels, size, size + 1), layout)
    sources = random_sources((block,))
    y = run((block,), x, sources)
    result = check(y, (block,), x, sources)
    assert result.ok, result
    assert y.is_contiguous(memory_format=torch.channels_last)
    # float16-rounded weights are what the comparison must be able to see.
    rounded = [s.half().float() if s.is_floating_point() else s for s in sources]
    assert not check(run((block,), x, rounded), (block,), x, sources).ok


def test_empty_batch():
    chain = network()
    assert run(chain, torch.randn(0, 3, 33, 30), random_sources(chain)).shape == (0, 11)
    assert run(chain[:2], torch.randn(0, 3, 32, 30), random_sources(chain[:2])).shape == (0, 24, 8, 8)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_network_matches_float64(isa, batch):
    chain, x = network(), torch.randn(batch, 3, 33, 30)
    sources = random_sources(chain)
    y = run(chain, x, sources)
    assert y.shape == (batch, 11)
    result = check(y, chain, x, sources)
    assert result.ok, result


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_block_matches_float64(isa, data):
    draw = data.draw
    cin = draw(st.integers(1, 40), "in")
    hidden = draw(st.sampled_from([cin, cin * 2 + 1, cin * 6]), "hidden")
    stride = draw(st.integers(1, 3), "stride")
    cout = draw(st.one_of(st.just(cin), st.integers(1, 70)), "out")
    kernel, dilation = draw(st.integers(1, 6), "kernel"), draw(st.integers(1, 2), "dilation")
    pads = draw(st.one_of(st.just("same"), st.tuples(*[st.integers(0, 3)] * 4)), "padding")
    size = draw(st.tuples(st.integers(12, 20), st.integers(12, 20)), "size")
    chain = (
        inverted(
            cin, hidden, cout, kernel, stride, pads, draw(st.sampled_from(["none", "relu", "relu6"])), False, dilation
        ),
    )
    x = make_input((draw(st.integers(1, 3)), cin, *size), draw(st.sampled_from(LAYOUTS)))
    sources = random_sources(chain)
    result = check(run(chain, x, sources), chain, x, sources)
    assert result.ok, result


def test_same_bits_everywhere(isa):
    chain = network() if isa != "scalar" else network()[:2]
    x, sources = torch.randn(7, 3, 65, 64), random_sources(chain)
    torch.set_num_threads(1)
    expected = run(chain, x, sources)
    for threads in (2, 3, 16):
        torch.set_num_threads(threads)
        assert torch.equal(run(chain, x, sources), expected)
    for position, batch in itertools.product((0, 3, 6), (1, 2)):
        part = x[position : position + batch]
        assert torch.equal(run(chain, part, sources), expected[position : position + batch])
    assert torch.equal(run(chain, x.contiguous(memory_format=torch.channels_last), sources), expected)


def test_vector_isas_agree_bit_for_bit():
    chain, x = network(), torch.randn(2, 3, 40, 41)
    sources = random_sources(chain)
    results = []
    try:
        for entry in native.isas():
            if entry["supported"]:
                native.set_isa_cap(entry["name"])
                results.append(run(chain, x, sources))
    finally:
        native.set_isa_cap(None)
    assert len(results) > 1
    assert all(torch.equal(r, results[0]) for r in results)


def test_many_threads_on_one_slot():
    chain, x = network(), torch.randn(3, 3, 65, 64)
    sources = random_sources(chain)
    expected = run(chain, x, sources)
    slot = torch.tensor(native.new_slot())
    try:
        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(lambda _: run(chain, x, sources, slot=slot), range(32)))
    finally:
        native.free_slot(slot.item())
    assert all(torch.equal(r, expected) for r in results)


# The result of a network is flat, and layouts mean the same to every block: all of them once is enough, each takes
# seconds.
OPCHECKS = [("network", LAYOUTS[0], "channels_last"), ("depthwise", LAYOUTS[0], "follow_input")]
OPCHECKS += [("block", layout, follow) for layout in LAYOUTS for follow in ("channels_last", "follow_input")]


@pytest.mark.parametrize(("kind", "layout", "follow"), OPCHECKS)
def test_opcheck(kind, layout, follow):
    depthwise = (BlockSpec(depthwise=ConvSpec(3, 3, (3, 3), depthwise=True)),)
    chain = {"network": network(), "block": (inverted(16, 96, 24, stride=2),), "depthwise": depthwise}[kind]
    x = make_input((2, chain[0].in_channels, 14, 15), layout)
    sources = random_sources(chain)
    program, constants = encode(chain, follow)
    slot = torch.tensor(native.new_slot())
    try:
        for s in (slot, None):
            torch.library.opcheck(torch.ops.mobilenet_ext.chain.default, (x, sources, s, program, constants))
        grad_x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        torch.library.opcheck(torch.ops.mobilenet_ext.chain_grad.default, (grad_x, sources, None, program, constants))
    finally:
        native.free_slot(slot.item())


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 1, 5, 5), (2, 4, 1, 1), (2, 4, 1, 5), (0, 3, 4, 4), (2, 3, 4, 5)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_fake_strides_are_the_kernel_strides(shape, layout):
    """Also where strides are ambiguous: NCHW wins in an op that follows its input."""
    spec = BlockSpec(depthwise=ConvSpec(shape[1], shape[1], (1, 1), depthwise=True))
    x, sources = make_input(shape, layout), random_sources((spec,))
    for follow in ("channels_last", "follow_input"):
        program, constants = encode((spec,), follow)
        real = torch.ops.mobilenet_ext.chain(x, sources, None, program, constants)
        with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fake = torch.ops.mobilenet_ext.chain(
                mode.from_tensor(x), [mode.from_tensor(s) for s in sources], None, program, constants
            )
        assert real.stride() == fake.stride()
        assert real.shape == fake.shape


def test_program_round_trip():
    chain = network()
    program, constants = encode(chain, "follow_input", transient=True)
    decoded = decode(program, constants)
    assert decoded.chain == chain
    assert (decoded.layout, decoded.transient) == ("follow_input", True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_depthwise_conv2d_is_conv2d(isa, layout):
    x, weight, bias = make_input((2, 20, 13, 11), layout), torch.randn(20, 1, 5, 3), torch.randn(20)
    y = ops.depthwise_conv2d(x, weight, bias, stride=(2, 1), padding=(2, 1), dilation=(1, 2))
    expected = F.conv2d(x.double(), weight.double(), bias.double(), (2, 1), (2, 1), (1, 2), 20)
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=1e-5)
    assert y.is_contiguous(memory_format=torch.channels_last if layout == "channels_last" else torch.contiguous_format)


def test_depthwise_conv_bn_act_is_the_modules(isa):
    x, w = make_input((2, 24, 9, 9), "contiguous"), torch.randn(24, 1, 3, 3)
    bn = torch.nn.BatchNorm2d(24, eps=1e-3).eval()
    bn.running_mean.normal_()
    bn.running_var.uniform_(0.5, 2)
    with torch.no_grad():
        y = ops.depthwise_conv_bn_act(x, w, bn.weight, bn.bias, bn.running_mean, bn.running_var, 1e-3, 2, 1)
        expected = F.relu6(bn.double()(F.conv2d(x.double(), w.double(), None, 2, 1, 1, 24)))
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=1e-5)


def test_inverted_residual_is_the_composition(isa):
    block = inverted(16, 96, 16, residual=True)
    block = BlockSpec(
        block.expand,
        ConvSpec(96, 96, (3, 3), (1, 1), (1, 1), (1,) * 4, True, "relu6", 1e-5, BN),
        block.project,
        residual=True,
    )
    t, x = random_sources((block,)), make_input((2, 16, 9, 9), "contiguous")
    y = ops.inverted_residual(x, (t[0], tuple(t[1:5])), (t[5], tuple(t[6:10])), (t[10], tuple(t[11:])), residual=True)
    assert check(y, (block,), x, t).ok
    assert y.is_contiguous()


def test_gradients_match_autograd_in_float64():
    chain = network()
    x = torch.randn(2, 3, 21, 20, requires_grad=True)
    sources = [s.requires_grad_() if s.is_floating_point() else s for s in random_sources(chain)]
    program, constants = encode(chain)
    y = torch.ops.mobilenet_ext.chain_grad(x, sources, None, program, constants)
    weight = torch.randn_like(y)
    wanted = [x] + [s for s, name in zip(sources, source_names(chain), strict=True) if "running" not in name]
    grads = torch.autograd.grad((y * weight).sum(), wanted)
    x64 = x.detach().double().requires_grad_()
    trained = ["running" not in name for name in source_names(chain)]
    sources64 = [s.detach().double().requires_grad_(t) for s, t in zip(sources, trained, strict=True)]
    wanted64 = [x64] + [s for s, t in zip(sources64, trained, strict=True) if t]
    expected = torch.autograd.grad((run_chain(chain, x64, sources64) * weight.double()).sum(), wanted64)
    for got, want in zip(grads, expected, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4 * want.abs().max().item())


def test_relu6_gradient_is_zero_at_both_ends():
    spec = BlockSpec(depthwise=ConvSpec(1, 1, (1, 1), depthwise=True, activation="relu6"))
    x = torch.tensor([0.0, 6.0, 3.0, -1.0, 7.0]).view(1, 1, 1, 5).requires_grad_()
    program, constants = encode((spec,))
    torch.ops.mobilenet_ext.chain_grad(x, [torch.ones(1, 1, 1, 1)], None, program, constants).sum().backward()
    assert x.grad.flatten().tolist() == [0, 0, 1, 0, 0]


def test_nan_and_infinity_survive(isa):
    chain = (inverted(8, 48, 8, residual=True),)
    sources = random_sources(chain)
    x = torch.zeros(1, 8, 7, 7)
    x[0, 0, 0, 0], x[0, 1, 6, 6] = math.nan, math.inf
    y = run(chain, x, sources)
    assert y[0, :, 0, 0].isnan().all()
    assert not y[0, :, 3, 3].isnan().any()
    assert y[0, 1, 6, 6].isinf()  # through the residual
    assert y[0, 0, 6, 6].isfinite()  # ReLU6 bounds the hidden tensor


def test_more_than_two_to_the_31_elements():
    """A stride-0 input: offsets are 64-bit, and a mean over 1e9 pixels keeps its digits."""
    chain = (BlockSpec(expand=ConvSpec(2, 3, activation="relu6", sources=("weight", "conv_bias")), pool=True),)
    sources = random_sources(chain)
    row = torch.randn(1, 2, 1, 1)
    x = row.expand(1, 2, 33000, 33000)
    assert x.numel() > 2**31
    torch.testing.assert_close(run(chain, x, sources), run(chain, row, sources), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.randn(3, 8, 8), r"x has shape \(3, 8, 8\); allowed: four dimensions"),
        (torch.randn(1, 4, 8, 8), r"x has 4 channels .*; this block takes 16"),
        (torch.randn(1, 16, 8, 8, dtype=torch.float64), "x must be float32"),
    ],
)
def test_bad_input(x, message):
    chain = (inverted(16, 96, 24),)
    with pytest.raises(RuntimeError, match=message):
        run(chain, x, random_sources(chain))


def test_bad_sources_and_sizes():
    chain = (inverted(16, 96, 24),)
    x, sources = torch.randn(1, 16, 8, 8), random_sources(chain)
    with pytest.raises(RuntimeError, match="sources has 14 tensors; this program needs 15"):
        run(chain, x, sources[:-1])
    wrong = [torch.randn(95, 16, 1, 1), *sources[1:]]
    with pytest.raises(RuntimeError, match=r"weight has shape \(95, 16, 1, 1\); this stage needs \(96, 16, 1, 1\)"):
        run(chain, x, wrong)
    small = (BlockSpec(depthwise=ConvSpec(16, 16, (5, 5), depthwise=True)),)
    with pytest.raises(RuntimeError, match="too small"):
        run(small, torch.randn(1, 16, 3, 8), random_sources(small))
    with pytest.raises(RuntimeError, match="holds nothing packed"):
        torch.ops.mobilenet_ext.chain_cached(x, torch.tensor(10**9))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, w: ops.depthwise_conv2d(x, w, stride=0), "stride is 0; allowed"),
        (lambda x, w: ops.depthwise_conv2d(x, w, padding="full"), "padding is 'full'; allowed"),
        (lambda x, w: ops.depthwise_conv2d(x, w, padding=-1), "padding is -1; allowed"),
        (lambda x, w: ops.depthwise_conv2d(x[:, :5], w), "x has 5 channels; this weight takes 8"),
        (lambda x, w: ops.depthwise_conv2d(x[0], w), "allowed: four dimensions"),
        (lambda x, w: ops.depthwise_conv2d(x.half(), w), "x is torch.float16; allowed: torch.float32"),
        (lambda x, w: ops.depthwise_conv2d(x.double(), w), "weight is torch.float32 on cpu; allowed: a torch.float64"),
        (
            lambda x, w: ops.depthwise_conv2d(x, w.expand(8, 2, 3, 3)),
            r"weight has shape \(8, 2, 3, 3\); allowed: \(C, 1",
        ),
        (lambda x, w: ops.depthwise_conv2d(x.to("meta"), w), "x is on meta; allowed: the CPU"),
        (lambda x, w: ops.depthwise_conv2d(x, w.to("meta")), "weight is torch.float32 on meta; allowed"),
        (lambda x, w: ops.depthwise_conv_bn_act(x, w, None, None, None, None), "running_mean or running_var is None"),
    ],
)
def test_functional_errors(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call(torch.randn(1, 8, 6, 6), torch.randn(8, 1, 3, 3))


def test_unknown_isa_is_refused_with_the_list():
    with pytest.raises(
        ValueError, match=r"'avx9000', which is no instruction set of this build; allowed here: .*scalar"
    ):
        native.set_isa_cap("avx9000")


def test_autocast_returns_the_autocast_dtype():
    x, w = torch.randn(1, 8, 6, 6), torch.randn(8, 1, 3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = ops.depthwise_conv2d(x.bfloat16(), w, padding=1)
    assert y.dtype == torch.bfloat16
    expected = F.conv2d(x.bfloat16().float(), w, padding=1, groups=8).bfloat16()
    torch.testing.assert_close(y, expected)


def test_a_residual_needs_an_output_of_its_input_size():
    block = inverted(8, 48, 8, padding=(2, 2, 2, 2), residual=True)
    sources, x = random_sources((block,)), torch.randn(1, 8, 10, 10)
    with pytest.raises(RuntimeError, match="residual needs an output of the input's size; this block makes 12 x 12"):
        run((block,), x, sources)


def test_backward_under_autocast():
    chain = (inverted(8, 48, 8, residual=True),)
    sources, x = random_sources(chain), torch.randn(1, 8, 7, 7, requires_grad=True)
    program, constants = encode(chain)

    def gradient():
        y = torch.ops.mobilenet_ext.chain_grad(x, sources, None, program, constants)
        return torch.autograd.grad(y.pow(2).mean(), x)[0]

    expected = gradient()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(gradient(), expected)
