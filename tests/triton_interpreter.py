"""Every Triton kernel under Triton's interpreter, against float64: run by test_triton.py with TRITON_INTERPRET=1."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from mobilenet_ext.backends import aten
from mobilenet_ext.backends.gpu import packing, plans, register, runtime, slots
from mobilenet_ext.backends.triton import batch_norm_backward, common, depthwise, depthwise_backward
from mobilenet_ext.backends.triton.common import Geometry
from mobilenet_ext.freshness import Slot, bump_epoch, distrust
from mobilenet_ext.spec import BlockSpec, ConvSpec, encode
from mobilenet_ext.tolerance import check

BN = ("weight", "bn_weight", "bn_bias", "running_mean", "running_var")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LAYOUTS = ("contiguous", "channels_last", "slice")
SIZES = ((1, 1), (7, 5), (4, 9))


def test_the_interpreter_runs():
    assert common.INTERPRETED


def sources_of(block, dtype):
    """Signed and scaled so that both clamps of ReLU6 bite; half weights are exact inputs of the comparison."""
    tensors = []
    for _, spec in block.stages():
        fan = math.prod(spec.weight_shape[1:])
        values = {
            "weight": (torch.randn(spec.weight_shape) / math.sqrt(fan)).to(dtype),
            "conv_bias": torch.randn(spec.out_channels).to(dtype),
            "bn_weight": torch.rand(spec.out_channels) * 3 + 1,
            "bn_bias": torch.randn(spec.out_channels) + 1,
            "running_mean": torch.randn(spec.out_channels) / 2,
            "running_var": torch.rand(spec.out_channels) + 0.5,
        }
        tensors += [values[name] for name in spec.sources]
    return tensors


def image(shape, dtype, layout):
    n, c, h, w = shape
    if layout == "slice":
        return (2 * torch.randn(n, c + 2, h + 3, w + 1)).to(dtype)[:, 1:-1, 1:-2, :w]
    x = (2 * torch.randn(shape)).to(dtype)
    return x.to(memory_format=torch.channels_last) if layout == "channels_last" else x


def depthwise_spec(channels, kernel, stride, activation="relu6", padding=None, sources=BN, dilation=1):
    pads = padding or ((kernel - 1) * dilation // 2,) * 4
    return ConvSpec(
        channels, channels, (kernel,) * 2, (stride,) * 2, (dilation,) * 2, pads, True, activation, 1e-5, sources
    )


def assert_right(block, x, sources, run):
    packed = packing.pack((block,), sources, x.dtype)[0]
    y = run(packed, x)
    result = check(y, (block,), x, packed.sources, x.dtype)
    assert y.dtype == x.dtype
    assert result.ok, result
    return y


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("kernel", "stride"), list(itertools.product((3, 5), (1, 2))))
@pytest.mark.parametrize("layout", LAYOUTS)
def test_depthwise(dtype, kernel, stride, layout):
    # The interpreter takes about a second per case, so sizes rotate instead of multiplying.
    size = SIZES[(DTYPES.index(dtype) + LAYOUTS.index(layout) + kernel + stride) % 3]
    channels = 20 if kernel == 3 else 9
    size = size if kernel == 3 else (min(size[0], 4), 5)
    block = BlockSpec(depthwise=depthwise_spec(channels, kernel, stride))
    x = image((2 if kernel == 3 else 1, channels, *size), dtype, layout)
    y = assert_right(block, x, sources_of(block, dtype), plans.partial(plans._triton_stages, 0))
    planar = x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last)
    assert y.is_contiguous(memory_format=torch.contiguous_format if planar else torch.channels_last)


@pytest.mark.parametrize("padding", ["same", (0, 1, 2, 0), (0, 0, 0, 0)], ids=str)
@pytest.mark.parametrize("activation", ["none", "relu", "relu6"])
@pytest.mark.parametrize("layout", LAYOUTS[:2])
def test_depthwise_paddings_and_activations(padding, activation, layout):
    spec = depthwise_spec(6, 3, 2, activation, padding, ("weight", "conv_bias"))
    block = BlockSpec(depthwise=spec)
    x = image((1, 6, 6, 5), torch.float32, layout)
    assert_right(block, x, sources_of(block, torch.float32), plans.partial(plans._triton_stages, 1))


def test_depthwise_dilation_and_wide_channels():
    block = BlockSpec(depthwise=depthwise_spec(70, 3, 1, dilation=2))
    x = image((1, 70, 6, 5), torch.float32, "channels_last")
    assert_right(block, x, sources_of(block, torch.float32), plans.partial(plans._triton_stages, 0))


@pytest.mark.parametrize("layout", LAYOUTS[:2])
def test_every_depthwise_configuration_gives_the_same_bits(layout):
    channels = 40 if layout == "channels_last" else 2
    x = image((1, channels, 5, 9), torch.float32, layout)
    weight, scale, bias = torch.randn(3, 3, channels), torch.rand(channels) + 0.5, torch.randn(channels)
    geometry = Geometry((3, 3), (1, 1), (1, 1), 1, 1, 5, 9)
    results = [
        depthwise.depthwise(x, weight, scale, bias, geometry, "relu6", config)
        for config in range(len(depthwise.CONFIGS_NHWC))
    ]
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [(16, 32), (20, 7), (3, 70)], ids=str)
@pytest.mark.parametrize("activation", ["none", "relu6"])
@pytest.mark.parametrize("size", SIZES[:2], ids=str)
def test_pointwise(dtype, channels, activation, size):
    block = BlockSpec(expand=ConvSpec(*channels, activation=activation, eps=1e-5, sources=BN))
    x = image((2, channels[0], *size), dtype, "channels_last")
    assert_right(block, x, sources_of(block, dtype), plans.partial(plans._triton_stages, 0))


def inverted(cin, hidden, cout, kernel, stride, residual=False):
    return BlockSpec(
        ConvSpec(cin, hidden, activation="relu6", eps=1e-5, sources=BN) if cin != hidden else None,
        depthwise_spec(hidden, kernel, stride),
        ConvSpec(hidden, cout, eps=1e-5, sources=BN),
        residual=residual,
    )


BLOCKS = {
    "residual": inverted(8, 40, 8, 3, 1, True),
    "stride2": inverted(12, 33, 20, 3, 2),
    "k5": inverted(8, 16, 24, 5, 2),
    "separable": inverted(20, 20, 12, 3, 1),
    "wide": inverted(70, 16, 17, 3, 1),
}
PLANS = {"stages": plans._triton_stages, "depthwise_project": plans._triton_pair, "block": plans._triton_block}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("plan", PLANS)
def test_blocks(dtype, name, plan):
    size = SIZES[(len(name) + len(plan) + DTYPES.index(dtype)) % 3]
    block = BLOCKS[name]
    if plan == "block" and block.expand is None:
        plan = "depthwise_project"
    x = image((2, block.in_channels, *size), dtype, LAYOUTS[len(name) % 3])
    assert_right(block, x, sources_of(block, dtype), plans.partial(PLANS[plan], 0))


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("config", range(4))
def test_every_configuration_of_a_block(plan, config):
    block = BLOCKS["residual"]
    x = image((3, 8, 6, 7), torch.float32, "channels_last")
    assert_right(block, x, sources_of(block, torch.float32), plans.partial(PLANS[plan], config))


@pytest.mark.parametrize("plan", PLANS)
def test_a_dense_first_stage_runs_in_pytorch_and_the_rest_in_kernels(plan):
    stem = ConvSpec(3, 16, (3, 3), (2, 2), (1, 1), (1, 1, 1, 1), activation="relu6", eps=1e-5, sources=BN)
    block = BlockSpec(stem, depthwise_spec(16, 3, 1), ConvSpec(16, 8, eps=1e-5, sources=BN))
    x = image((1, 3, 9, 9), torch.float32, "contiguous")
    packed = packing.pack((block,), sources_of(block, torch.float32), torch.float32)[0]
    names = [c.name for c in plans.candidates(packed, x, ("triton",))]
    assert not any(name.startswith("triton.block") for name in names)
    run = plans._triton_stages if plan == "stages" else plans._triton_pair
    assert check(run(0, packed, x), (block,), x, packed.sources).ok


@pytest.mark.parametrize("name", BLOCKS)
def test_an_empty_batch(name):
    block = BLOCKS[name]
    x = torch.empty(0, block.in_channels, 6, 6)
    packed = packing.pack((block,), sources_of(block, torch.float32), torch.float32)[0]
    for run in (plans._triton_stages, plans._triton_pair):
        assert run(0, packed, x).shape == aten.run_block(block, x, packed.tensors).shape


def test_not_a_number_and_infinity():
    block = BLOCKS["separable"]
    x = image((1, 20, 5, 5), torch.float32, "channels_last")
    x[0, 3, 2, 2], x[0, 4, 0, 0], x[0, 5, 4, 4] = math.nan, math.inf, -math.inf
    for run in (plans._triton_stages, plans._triton_pair):
        packed = packing.pack((block,), sources_of(block, torch.float32), torch.float32)[0]
        exact = [{name: t.double() for name, t in named.items()} for named in packed.tensors]
        reference = aten.run_block(block, x.double(), exact)
        assert reference.isnan().any()
        torch.testing.assert_close(run(0, packed, x).double(), reference, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_rounded_weights_fail():
    """The comparison can fail: weights rounded to fp16 are within no float32 tolerance."""
    block = BLOCKS["residual"]
    sources = sources_of(block, torch.float32)
    rounded = [s.half().float() for s in sources]
    x = image((2, 8, 6, 7), torch.float32, "channels_last")
    packed = packing.pack((block,), rounded, torch.float32)[0]
    assert not check(plans._triton_pair(0, packed, x), (block,), x, sources).ok


def gradients(x, weight, dy, stride, pads):
    top, bottom, left, right = pads
    padded = F.pad(x.double(), (left, right, top, bottom)).requires_grad_()
    w = weight.double().requires_grad_()
    F.conv2d(padded, w, None, stride, groups=x.shape[1]).backward(dy.double())
    h, width = padded.shape[2:]
    return padded.grad[:, :, top : h - bottom, left : width - right], w.grad


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("kernel", "stride"), list(itertools.product((3, 5), (1, 2))))
@pytest.mark.parametrize(("size", "pads"), [((7, 5), None), ((6, 9), (0, 1, 2, 1)), ((1, 1), None)], ids=str)
def test_depthwise_gradients(dtype, kernel, stride, size, pads):
    channels = 21
    size = size if kernel == 3 else (min(size[0], 4), min(size[1], 5))
    pads = pads or (kernel // 2,) * 4
    spec = depthwise_spec(channels, kernel, stride, padding=pads)
    batch = 2 if kernel == 3 else 1
    x = image((batch, channels, *size), dtype, "channels_last")
    weight = torch.randn(channels, 1, kernel, kernel).to(dtype)
    geometry = Geometry(spec.kernel, spec.stride, spec.dilation, pads[0], pads[2], *spec.output_size(*size))
    dy = image((batch, channels, geometry.height, geometry.width), dtype, "contiguous")
    expected_dx, expected_dw = gradients(x, weight, dy, stride, pads)
    magnitude_dx, magnitude_dw = gradients(x.abs(), weight.abs(), dy.abs(), stride, pads)
    eps, terms = torch.finfo(dtype).eps, dy.shape[0] * dy.shape[2] * dy.shape[3]
    packed = weight.squeeze(1).permute(1, 2, 0).contiguous()
    dx = depthwise_backward.backward_data(dy, packed, geometry, *size)
    assert ((dx.double() - expected_dx).abs() <= 2 * eps * kernel * magnitude_dx).all()
    dw = depthwise_backward.backward_weight(x, dy, geometry)
    error = (dw.permute(2, 0, 1)[:, None].double() - expected_dw).abs()
    assert (error <= 2 * torch.finfo(torch.float32).eps * math.sqrt(terms) * magnitude_dw).all()
    assert torch.equal(dw, depthwise_backward.backward_weight(x, dy, geometry))


def test_weight_gradient_over_many_chunks(monkeypatch):
    monkeypatch.setattr(depthwise_backward, "WEIGHT_PROGRAMS", 4)
    x, dy = image((3, 40, 5, 6), torch.float32, "channels_last"), torch.randn(3, 40, 5, 6)
    geometry = Geometry((3, 3), (1, 1), (1, 1), 1, 1, 5, 6)
    _, expected = gradients(x, torch.zeros(40, 1, 3, 3), dy, 1, (1, 1, 1, 1))
    dw = depthwise_backward.backward_weight(x, dy, geometry)
    torch.testing.assert_close(dw.permute(2, 0, 1)[:, None].double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("activation", ["none", "relu", "relu6"])
def test_batch_norm_backward(dtype, batch, activation):
    channels = 37
    v, dy = image((2, channels, 5, 7), dtype, "channels_last"), image((2, channels, 5, 7), dtype, "contiguous")
    exact = v.double()
    mean = exact.mean((0, 2, 3)) if batch else torch.randn(channels).double()
    var = exact.var((0, 2, 3), unbiased=False) if batch else torch.rand(channels).double() + 0.5
    weight, bias = torch.rand(channels) * 2 + 0.5, torch.randn(channels) + 2
    arguments = [exact.requires_grad_(), weight.double().requires_grad_(), bias.double().requires_grad_()]
    z = F.batch_norm(arguments[0], mean.clone(), var.clone(), arguments[1], arguments[2], batch, 0.0, 1e-5)
    aten._ACTIVATIONS[activation](z).backward(dy.double())
    rstd = torch.rsqrt(var + 1e-5)
    results = batch_norm_backward.batch_norm_act_backward(
        v.detach(), dy, mean.float(), rstd.float(), weight, bias, activation, batch
    )
    # Masks may differ where the value lies within rounding of a kink: none of these 2590 does.
    distance = torch.minimum(z.abs(), (z - 6).abs()).min()
    assert distance > 1e-5
    for actual, argument in zip(results, arguments, strict=True):
        eps = torch.finfo(actual.dtype).eps
        scale = argument.grad.abs().amax()
        assert (actual.double() - argument.grad).abs().max() <= 8 * eps * scale * (1 if actual.dtype == dtype else 4)


def test_batch_norm_backward_masks_are_open_at_both_ends():
    v = torch.tensor([0.0, 6.0, 3.0, -1.0, 7.0]).view(1, 1, 1, 5)
    one, zero = torch.ones(1), torch.zeros(1)
    dv, _, dbias = batch_norm_backward.batch_norm_act_backward(
        v, torch.ones_like(v), zero, one, one, zero, "relu6", False
    )
    assert dv.flatten().tolist() == [0, 0, 1, 0, 0]
    assert dbias.item() == 1


def test_errors_name_the_argument():
    weight, vector = torch.randn(3, 3, 4), torch.randn(4)
    geometry = Geometry((3, 3), (1, 1), (1, 1), 1, 1, 4, 4)
    with pytest.raises(TypeError, match=r"x is torch.float64; allowed"):
        depthwise.depthwise(torch.randn(1, 4, 4, 4).double(), weight, vector, vector, geometry)
    with pytest.raises(ValueError, match=r"x has shape \(4, 4, 4\)"):
        depthwise.depthwise(torch.randn(4, 4, 4), weight, vector, vector, geometry)
    with pytest.raises(ValueError, match="activation is 'gelu'; allowed: none, relu, relu6"):
        depthwise.depthwise(torch.randn(1, 4, 4, 4), weight, vector, vector, geometry, "gelu")


class TestChainOperator:
    """The functions behind the CUDA dispatch key, called directly on CPU tensors."""

    @pytest.fixture(autouse=True)
    def _own_cache(self, monkeypatch, tmp_path):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setenv("MOBILENET_EXT_GPU", "trust")

    @pytest.mark.parametrize("mode", ["trust", "check"])
    @pytest.mark.parametrize("layout", LAYOUTS[:2])
    def test_a_chain(self, monkeypatch, mode, layout):
        monkeypatch.setenv("MOBILENET_EXT_GPU", mode)
        monkeypatch.setattr(plans, "_triton_candidates", lambda *a: iter([plans.Candidate("triton.pair:0", PAIR)]))
        runtime.runtime.counters.clear()
        chain = (BLOCKS["residual"], LAST)
        sources = sources_of(chain[0], torch.float32) + sources_of(chain[1], torch.float32)
        x = image((1, 8, 5, 4), torch.float32, layout)
        program, constants = encode(chain, "follow_input", transient=True)
        y = register.chain(x, sources, None, program, constants)
        assert check(y, chain, x, sources).ok
        assert y.is_contiguous() == (layout == "contiguous")
        expected = {"trust": {"triton.pair:0": 1, "aten": 1}, "check": {"aten": 2}}  # interpreted, PyTorch is faster
        assert runtime.runtime.counters == expected[mode]

    def test_slots_are_packed_again_when_sources_change(self):
        slot = Slot()
        chain = (BLOCKS["residual"],)
        sources = sources_of(chain[0], torch.float32)
        x = image((1, 8, 3, 3), torch.float32, "channels_last")
        program, constants = encode(chain)
        first = register.chain(x, sources, slot.tensor, program, constants)
        entry = slots.trusted(slot.id)
        assert torch.equal(register.chain_cached(x, slot.tensor), first)
        assert register.chain(x, sources, slot.tensor, program, constants) is not None
        assert slots.trusted(slot.id) is entry
        sources[0].mul_(2)
        changed = register.chain(x, sources, slot.tensor, program, constants)
        assert slots.trusted(slot.id) is not entry
        assert check(changed, chain, x, sources).ok
        bump_epoch()
        before = slots.trusted(slot.id)
        register.chain(x, sources, slot.tensor, program, constants)
        assert slots.trusted(slot.id) is not before

    def test_a_captured_entry_is_packed_again_in_place(self):
        slot = Slot()
        chain = (BLOCKS["residual"],)
        sources = sources_of(chain[0], torch.float32)
        x = image((1, 8, 3, 3), torch.float32, "channels_last")
        program, constants = encode(chain)
        register.chain(x, sources, slot.tensor, program, constants)
        entry = slots.trusted(slot.id)
        entry.pinned = True
        weight = entry.packed[torch.float32][0].stages["expand"].weight
        sources[0].mul_(2)
        register.chain(x, sources, slot.tensor, program, constants)
        again = slots.trusted(slot.id)
        assert again.pinned
        distrust(slot.id)
        register.chain(x, sources, slot.tensor, program, constants)
        assert slots.trusted(slot.id) is not again
        assert slots.trusted(slot.id).packed[torch.float32][0].stages["expand"].weight is weight
        assert again.packed[torch.float32][0].stages["expand"].weight is weight
        torch.testing.assert_close(weight, sources[0][:, :, 0, 0].t())

    def test_a_freed_slot_is_forgotten(self):
        slot = Slot()
        number = slot.id
        chain = (LAST,)
        program, constants = encode(chain)
        x = image((1, 8, 3, 3), torch.float32, "channels_last")
        register.chain(x, sources_of(chain[0], torch.float32), slot.tensor, program, constants)
        del slot
        with pytest.raises(RuntimeError, match=f"slot {number} holds nothing packed for a GPU"):
            register.chain_cached(x, torch.tensor(number))

    def test_a_half_image_with_float32_weights(self):
        """What autocast gives: products see weights rounded to fp16, BatchNorm its fp32 vectors."""
        chain = (BLOCKS["separable"],)
        sources = sources_of(chain[0], torch.float32)
        x = image((1, 20, 4, 4), torch.float16, "channels_last")
        program, constants = encode(chain)
        y = register.chain(x, sources, None, program, constants)
        rounded = [s.half() if s.dim() == 4 else s for s in sources]
        assert y.dtype == torch.float16
        assert check(y, chain, x, rounded, torch.float16).ok

    @pytest.mark.parametrize(
        ("x", "message"),
        [
            (torch.randn(1, 9, 3, 3), r"x has 9 channels \(shape \(1, 9, 3, 3\)\); this block takes 8"),
            (torch.randn(8, 3, 3), r"x has shape \(8, 3, 3\); allowed: four dimensions"),
            (torch.randn(1, 8, 3, 3).double(), r"x is torch.float64; allowed: torch.float32"),
        ],
    )
    def test_errors(self, x, message):
        program, constants = encode((LAST,))
        with pytest.raises(RuntimeError, match=message):
            register.chain(x, sources_of(LAST, torch.float32), None, program, constants)


PAIR = plans.partial(plans._triton_pair, 0)
LAST = BlockSpec(expand=ConvSpec(8, 6, (3, 3), (2, 2), (1, 1), (1, 1, 1, 1), activation="relu", sources=("weight",)))
