"""The float64 definition of right: BatchNorm folding, padding, and a chain run with plain PyTorch operators."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mobilenet_ext import backends
from mobilenet_ext.backends import aten, cpu
from mobilenet_ext.folding import fold
from mobilenet_ext.spec import BlockSpec, ConvSpec, LinearSpec, source_names

ALL = ("weight", "conv_bias", "bn_weight", "bn_bias", "running_mean", "running_var", "num_batches_tracked")
OPTIONAL_SOURCES = [
    ALL,
    ALL[:2],
    ALL[:1],
    ("weight", *ALL[2:]),
    ("weight", "running_mean", "running_var"),
    ALL[:1] + ALL[3:6],
]


def make_tensors(spec, dtype=torch.float64, generator=None):
    shapes = {"weight": spec.weight_shape, "num_batches_tracked": ()}
    tensors = {}
    for name in spec.sources:
        value = torch.randn(shapes.get(name, (spec.out_channels,)), generator=generator, dtype=torch.float64)
        if name == "running_var":
            value = value.abs() + 0.1
        tensors[name] = torch.tensor(3) if name == "num_batches_tracked" else value.to(dtype)
    return tensors


def flat(chain, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sources = []
    for item in chain:
        if isinstance(item, LinearSpec):
            shapes = [(item.out_features, item.in_features), (item.out_features,)]
            sources += [torch.randn(s, generator=generator, dtype=dtype) for s in shapes[: len(item.sources)]]
        else:
            for _, spec in item.stages():
                sources += make_tensors(spec, dtype, generator).values()
    return sources


def inverted_residual(channels=8, hidden=24, sources=ALL):
    return BlockSpec(
        expand=ConvSpec(channels, hidden, activation="relu6", eps=1e-5, sources=sources),
        depthwise=ConvSpec(
            hidden, hidden, (3, 3), padding=(1, 1, 1, 1), depthwise=True, activation="relu6", eps=1e-5, sources=sources
        ),
        project=ConvSpec(hidden, channels, eps=1e-5, sources=sources),
        residual=True,
    )


@settings(deadline=None, max_examples=60)
@given(
    channels=st.integers(1, 9),
    outputs=st.integers(1, 9),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    depthwise=st.booleans(),
    sources=st.sampled_from(OPTIONAL_SOURCES),
    eps=st.sampled_from([1e-3, 1e-5, 1e-8]),
    seed=st.integers(0, 10_000),
)
def test_folded_convolution_equals_convolution_and_batch_norm(channels, outputs, kernel, depthwise, sources, eps, seed):
    outputs = channels if depthwise else outputs
    spec = ConvSpec(channels, outputs, kernel, padding=(1, 0, 0, 1), depthwise=depthwise, eps=eps, sources=sources)
    generator = torch.Generator().manual_seed(seed)
    tensors = make_tensors(spec, generator=generator)
    x = torch.randn(2, channels, 5, 6, generator=generator, dtype=torch.float64)
    weight, bias = fold(spec, tensors)
    assert weight.dtype == bias.dtype == torch.float64
    expected = F.conv2d(
        F.pad(x, (0, 1, 1, 0)), tensors["weight"], tensors.get("conv_bias"), groups=channels if depthwise else 1
    )
    if spec.has_bn:
        vectors = [tensors.get(name) for name in ("running_mean", "running_var", "bn_weight", "bn_bias")]
        expected = F.batch_norm(expected, *vectors, eps=eps)
    torch.testing.assert_close(aten.convolve(spec, x, weight, bias), expected, rtol=1e-10, atol=1e-10)


def test_folding_low_precision_sources_happens_in_float64():
    spec = ConvSpec(16, 8, eps=1e-5, sources=ALL)
    tensors = make_tensors(spec, torch.bfloat16)
    exact = {name: t.double() for name, t in tensors.items()}
    for folded, expected in zip(fold(spec, tensors), fold(spec, exact), strict=True):
        assert torch.equal(folded, expected)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [1, 2, 7, 14])
def test_same_padding_keeps_the_promised_output_size(size, kernel, dilation, stride):
    spec = ConvSpec(2, 3, (kernel, kernel), (stride, stride), (dilation, dilation), padding="same")
    x = torch.randn(1, 2, size, size + 1, dtype=torch.float64)
    y = aten.run_chain((BlockSpec(expand=spec),), x, flat((BlockSpec(expand=spec),)))
    assert y.shape[2:] == spec.output_size(size, size + 1) == (-(-size // stride), -(-(size + 1) // stride))
    top, bottom, left, right = aten.paddings(spec, size, size + 1)
    assert 0 <= bottom - top <= 1
    assert 0 <= right - left <= 1


def test_a_chain_ends_in_pool_and_classifier():
    chain = (inverted_residual(), BlockSpec(expand=ConvSpec(8, 10, sources=("weight",)), pool=True), LinearSpec(10, 4))
    x = torch.randn(3, 8, 7, 5, dtype=torch.float64)
    sources = flat(chain)
    assert len(sources) == len(source_names(chain))
    features = aten.run_chain(chain[:1], x, sources[:-3])
    pooled = F.adaptive_avg_pool2d(F.conv2d(features, sources[-3]), 1).flatten(1)
    expected = F.linear(pooled, sources[-2], sources[-1])
    torch.testing.assert_close(aten.run_chain(chain, x, sources), expected)


def test_training_uses_batch_statistics_and_leaves_the_running_ones():
    spec = ConvSpec(4, 6, eps=1e-5, sources=ALL)
    chain = (BlockSpec(expand=spec),)
    sources = flat(chain)
    before = [source.clone() for source in sources]
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    y = F.conv2d(x, sources[0], sources[1])
    expected = F.batch_norm(y, None, None, sources[2], sources[3], training=True)
    torch.testing.assert_close(aten.run_chain(chain, x, sources, training=True), expected)
    assert all(torch.equal(a, b) for a, b in zip(sources, before, strict=True))


def test_gradients_flow_to_the_input_and_every_parameter():
    chain = (inverted_residual(2, 3),)
    sources = flat(chain)
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    wanted = [
        index for index, name in enumerate(source_names(chain)) if name not in ("running_mean", "running_var", ALL[-1])
    ]
    for index in wanted:
        sources[index].requires_grad_()
    grads = torch.autograd.grad(aten.run_chain(chain, x, sources).sum(), [x, *(sources[index] for index in wanted)])
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(0, 8, 7, 7), (1, 8, 1, 1), (2, 8, 7, 9)])
def test_dtypes_and_small_shapes(dtype, shape):
    chain = (inverted_residual(),)
    y = aten.run_chain(chain, torch.randn(shape, dtype=dtype), flat(chain, dtype))
    assert y.shape == shape
    assert y.dtype == dtype


@pytest.mark.parametrize(
    ("shape", "drop", "message"),
    [
        ((8, 7, 7), 0, r"x has 3 dimensions, shape \(8, 7, 7\); allowed: 4, \(N, C, H, W\)"),
        ((1, 9, 7, 7), 0, "x has 9 channels where the chain needs 8"),
        ((1, 8, 7, 7), 1, "sources has 20 tensors; this chain needs 21"),
    ],
)
def test_errors_name_the_argument(shape, drop, message):
    chain = (inverted_residual(),)
    sources = flat(chain)
    with pytest.raises(ValueError, match=message):
        aten.run_chain(chain, torch.randn(shape, dtype=torch.float64), sources[drop:])


def test_backends_are_chosen_in_order_with_reasons():
    chain = (inverted_residual(), LinearSpec(8, 2))
    assert backends.choose(chain, torch.device("cpu"), torch.float32) == (cpu, {})
    backend, reasons = backends.choose(chain, torch.device("cpu"), torch.bfloat16)
    assert backend is aten
    assert reasons == {
        "cpu": "the dtype is torch.bfloat16; the CPU kernels need torch.float32",
        "cuda": "the tensors are on cpu; the CUDA kernels need cuda",
        "triton": "the tensors are on cpu; the Triton kernels need cuda",
    }
    backend, reasons = backends.choose(chain, torch.device("meta"), torch.float32)
    assert backend is aten
    assert reasons["cpu"].startswith("the tensors are on meta")
    backend, reasons = backends.choose(chain, torch.device("cpu"), torch.int64)
    assert backend is None
    assert list(reasons) == ["cpu", "cuda", "triton", "aten"]
