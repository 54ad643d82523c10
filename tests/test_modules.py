"""The fused modules behave as the modules that they replace: keys, modes, gradients, layouts, errors."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest
import torch
from fused_cases import (
    assert_close,
    assert_fused_right,
    example,
    fused_path,
    make_block,
    make_run,
    plain_result,
    randomize,
)
from torch import nn

from mobilenet_ext.fusion import disabled, fuse
from mobilenet_ext.models import DepthwiseSeparable, InvertedResidual
from mobilenet_ext.modules import (
    FusedConvBNAct,
    FusedDepthwiseSeparable,
    FusedInvertedResidual,
    FusedModule,
    FusedSequential,
)

CONSTRUCTED = {
    "inverted_residual": (lambda: FusedInvertedResidual(16, 24, 2, 6), lambda: InvertedResidual(16, 24, 2, 6)),
    "ratio_1": (lambda: FusedInvertedResidual(16, 16, 1, 1), lambda: InvertedResidual(16, 16, 1, 1)),
    "depthwise_separable": (lambda: FusedDepthwiseSeparable(16, 32, 2), lambda: DepthwiseSeparable(16, 32, 2)),
    "sequential": (
        lambda: FusedSequential(make_block(), make_block()),
        lambda: nn.Sequential(make_block(), make_block()),
    ),
}


@pytest.mark.parametrize(("make", "make_plain"), CONSTRUCTED.values(), ids=CONSTRUCTED)
def test_constructor(make: Callable[[], nn.Module], make_plain: Callable[[], nn.Module]):
    fused, plain = randomize(make()).eval(), make_plain().eval()
    assert isinstance(fused, FusedModule)
    assert isinstance(fused, type(plain))
    assert list(fused.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(fused.state_dict(), strict=True)
    y = assert_fused_right(fused, example())
    with torch.no_grad():
        assert_close(y, plain(example()))
    assert torch.equal(assert_fused_right(pickle.loads(pickle.dumps(fused)), example()), y)


@pytest.mark.parametrize(
    "arguments",
    [
        {"kernel_size": 1},
        {"stride": 2, "activation": "relu"},
        {"kernel_size": 5, "groups": 16, "stride": 2},
        {"groups": 16, "dilation": 2, "activation": "none", "bias": True},
        {"kernel_size": (3, 5), "padding": (0, 1), "eps": 1e-3},
    ],
    ids=str,
)
def test_conv_bn_act(arguments: dict):
    fused = randomize(FusedConvBNAct(16, 16, **arguments)).eval()
    assert next(iter(fused.state_dict())) == "0.weight"
    y = assert_fused_right(fused, example(size=11))
    with torch.no_grad():
        assert_close(y, nn.Sequential(*fused.children())(example(size=11)))


def test_conv_bn_act_refuses_in_one_sentence():
    with pytest.raises(ValueError, match="groups=4"):
        FusedConvBNAct(16, 16, groups=4)
    with pytest.raises(ValueError, match="activation is 'gelu'; allowed: none, relu, relu6"):
        FusedConvBNAct(16, 16, activation="gelu")


@pytest.mark.parametrize(
    ("cls", "make_plain"),
    [
        (FusedInvertedResidual, make_block),
        (FusedDepthwiseSeparable, lambda: randomize(DepthwiseSeparable(16, 24)).eval()),
        (FusedConvBNAct, lambda: make_block().conv[0]),
        (FusedSequential, make_run),
    ],
)
def test_from_reference_shares_the_parameters(cls: type, make_plain: Callable[[], nn.Module]):
    plain = make_plain()
    fused = cls.from_reference(plain)
    assert type(fused) is cls
    assert all(a is b for a, b in zip(fused.parameters(), plain.parameters(), strict=True))
    assert all(a is b for a, b in zip(fused.buffers(), plain.buffers(), strict=True))
    with torch.no_grad():
        assert_close(assert_fused_right(fused, example()), plain(example()))
        next(plain.parameters()).mul_(1.5)
        assert_close(assert_fused_right(fused, example()), plain(example()))
    with pytest.raises(TypeError, match="reference is a Linear"):
        cls.from_reference(nn.Linear(2, 2))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("freeze_weights", [False, True])
def test_gradients_in_eval_mode(stride: int, freeze_weights: bool):
    plain = make_block(stride).requires_grad_(not freeze_weights)
    fused = fuse(plain)
    inputs = [example().requires_grad_() for _ in range(2)]
    with fused_path():
        y = fused(inputs[0])
    expected = plain(inputs[1])
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    (y * weights).sum().backward()
    (expected * weights).sum().backward()
    assert_close(y, expected)
    assert_close(inputs[0].grad, inputs[1].grad)
    for (name, ours), theirs in zip(fused.named_parameters(), plain.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        if ours.grad is not None:
            assert_close(ours.grad, theirs.grad)


def test_training_without_the_training_path_is_the_plain_modules():
    plain, x = make_block().train(), example()
    fused = fuse(plain, training=False)
    with fused_path(False):
        y, expected = fused(x), plain(x)
    assert torch.equal(y, expected)
    y.sum().backward()
    expected.sum().backward()
    for ours, theirs in zip(fused.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)
    for ours, theirs in zip(fused.buffers(), plain.buffers(), strict=True):
        assert torch.equal(ours, theirs)
    fused.eval()
    assert_fused_right(fused, x)


def test_modes_follow_each_norm():
    fused, x = fuse(make_block()), example()
    fused.conv[0][1].train()
    assert not fused.training
    with torch.no_grad():
        before = fused.conv[0][1].running_mean.clone()
        fused(x)
        assert not torch.equal(fused.conv[0][1].running_mean, before)
    fused.conv[0][1].eval()
    fused.training = True
    assert_fused_right(fused, x)


@pytest.mark.parametrize("size", [(0, 9, 9), (1, 1, 1), (1, 1, 7), (3, 7, 5)])
def test_sizes(size: tuple[int, int, int]):
    batch, height, width = size
    for stride in (1, 2):
        fused = fuse(make_block(stride))
        x = torch.randn(batch, 16, height, width)
        with torch.no_grad():
            y = fused(x)
        torch.testing.assert_close(y, plain_result(fused, x), rtol=1e-4, atol=1e-4)


LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "sliced": lambda x: torch.cat([x, x], 1)[:, 8:24, 1:, ::2],
    "flipped_axes": lambda x: x.transpose(2, 3),
    "expanded": lambda x: x[:1].expand(4, -1, -1, -1),
    "expanded_channels": lambda x: x[:, :1].expand(-1, 16, -1, -1),
}


@pytest.mark.parametrize("view", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("preserve", [False, True])
def test_layouts(view: Callable[[torch.Tensor], torch.Tensor], preserve: bool):
    fused, x = fuse(make_block(), preserve_format=preserve), view(example())
    y = assert_fused_right(fused, x)
    assert y.stride() == plain_result(fused, x).stride()
    wants_last = not preserve or (not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last if wants_last else torch.contiguous_format)


BAD_INPUTS = {
    "rank": torch.randn(2, 16),
    "channels": torch.randn(2, 8, 9, 9),
    "dtype": torch.zeros(2, 16, 9, 9, dtype=torch.int64),
    "double": torch.zeros(2, 16, 9, 9, dtype=torch.float64),
    "device": torch.zeros(2, 16, 9, 9, device="meta"),
    "none": None,
    "list": [1.0],
}


@pytest.mark.parametrize("x", BAD_INPUTS.values(), ids=BAD_INPUTS)
def test_bad_input_gets_the_plain_error(x: object):
    plain = make_block()
    fused = fuse(plain)
    with torch.no_grad():
        with pytest.raises(Exception) as expected:  # noqa: PT011  whatever it is, it must be the same
            plain(x)
        with pytest.raises(type(expected.value)) as ours:
            fused(x)
    assert str(ours.value) == str(expected.value)


def test_wrong_arguments_get_the_plain_error():
    plain, x = make_block(), example()
    fused = fuse(plain)
    for arguments, names in (((x, x), {}), ((), {}), ((), {"y": x})):
        with pytest.raises(TypeError) as expected:
            plain(*arguments, **names)
        with pytest.raises(TypeError) as ours:
            fused(*arguments, **names)
        assert str(ours.value) == str(expected.value)


def test_input_by_name():
    fused, x = fuse(make_block()), example()
    with torch.no_grad(), fused_path():
        y = fused(x=x)
    assert torch.equal(y, assert_fused_right(fused, x))


def test_double_model_runs_plainly():
    fused, x = fuse(make_block()).double(), example().double()
    with torch.no_grad(), fused_path(False):
        y = fused(x)
    assert y.dtype == torch.float64
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stride", [1, 2])
def test_autocast(dtype: torch.dtype, x_dtype: torch.dtype, stride: int):
    plain = make_block(stride)
    fused, x = fuse(plain), example().to(x_dtype)
    with torch.no_grad(), torch.autocast("cpu", dtype):
        with fused_path():
            y = fused(x)
        expected = plain(x)
    assert y.dtype == expected.dtype
    exact = plain_result(fused, x.float())
    # Arithmetic in float32 and one rounding at the end.
    torch.testing.assert_close(y.float(), exact, rtol=torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)


def test_autocast_of_a_run_and_gradients():
    fused, x = fuse(make_run()), example().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16), fused_path():
        y = fused(x)
        with disabled():
            assert fused(x).dtype == y.dtype
    y.float().sum().backward()
    assert x.grad.dtype == torch.float32


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_transforms_and_tracers_see_the_plain_modules():
    plain, x = make_block(), example()
    fused = fuse(plain)
    with fused_path(False):
        batched = torch.func.vmap(lambda image: fused(image[None])[0])(x)
        traced = torch.jit.trace(fused, x, check_trace=False)
        with torch.autograd.forward_ad.dual_level():
            dual = fused(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)))
            tangent = torch.autograd.forward_ad.unpack_dual(dual).tangent
    assert_close(batched, plain(x))
    assert "aten::_convolution" in str(traced.inlined_graph)
    assert tangent is not None
    assert torch.fx.symbolic_trace(fused)(x).shape == (2, 16, 10, 10)


def test_more_than_one_precision_of_copy():
    """A module called in turn as float32 and float64 keeps being right."""
    fused, x = fuse(make_block()), example()
    for _ in range(2):
        assert_fused_right(fused, x)
        with torch.no_grad():
            assert_close(fused.double()(x.double()).float(), plain_result(fused.float(), x))
