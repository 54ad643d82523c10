"""The differentiable block operator: gradients against float64, statistics, same bits, layouts, second derivatives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from training_cases import (
    BLOCKS,
    double,
    gradients,
    make_input,
    make_sources,
    modes_of,
    reference,
    rms,
    train_block,
)

from mobilenet_ext.backends import aten
from mobilenet_ext.training import block as block_module

MODES = ("frozen", "batch", "mixed")
EPS = torch.finfo(torch.float32).eps


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two images at a time, so that sums over parts of the batch are put together."""
    monkeypatch.setattr(block_module, "CHUNK_BYTES", 2 * 24 * 12 * 13 * 4)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", BLOCKS)
def test_formulas_in_float64(name: str, mode: str, small_chunks: None):
    """The same mathematics on plain operators in float64: no kernel, no rounding to hide a wrong term."""
    spec = BLOCKS[name]
    sources, x, batch = double(make_sources(spec)), double([make_input(spec)])[0], modes_of(spec, mode)
    found = gradients(train_block(x, sources, spec, batch)[0], x, sources, spec)
    expected = gradients(reference(x, sources, spec, batch)[0], x, sources, spec)
    assert found.keys() == expected.keys()
    for key, value in found.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", BLOCKS)
def test_gradients_match_float64(name: str, mode: str, isa: str, small_chunks: None):
    """With the masks that the float32 run took: RMS error at most twice PyTorch's own, single elements bounded."""
    spec = BLOCKS[name]
    sources, x, batch = make_sources(spec), make_input(spec), modes_of(spec, mode)
    y = train_block(x, sources, spec, batch)[0]
    found = gradients(y, x, sources, spec)

    plain, masks = reference(x, sources, spec, batch)
    theirs = gradients(plain, x, sources, spec)
    exact_sources, exact_x = double(sources), double([x])[0]
    exact_y = reference(exact_x, exact_sources, spec, batch, masks)[0]
    exact = gradients(exact_y, exact_x, exact_sources, spec)

    assert rms(y.double() - exact_y) <= 2 * max(rms(plain.double() - exact_y), EPS / 2 * rms(exact_y))
    for key, value in found.items():
        error = value.double() - exact[key]
        # A gradient that is zero (of what BatchNorm takes out again) has the rounding of the terms that cancel.
        scale = max(rms(exact[key]), rms(exact["x"]))
        # Few numbers give a noisy RMS, as in tolerance.compare.
        chance = 1 + 2 / error.numel() ** 0.5
        allowed = 2 * chance * max(rms(theirs[key].double() - exact[key]), 4 * EPS * scale)
        assert rms(error) <= allowed, f"{key}: {rms(error):.2e} where {allowed:.2e} is allowed"
        assert float(error.abs().max()) <= 64 * EPS * max(float(exact[key].abs().max()), scale), key


def test_a_rounded_weight_fails(isa: str):
    """The comparison above can fail: weights rounded to float16 are outside it."""
    spec = BLOCKS["residual"]
    sources, x, batch = make_sources(spec), make_input(spec), modes_of(spec, "batch")
    rounded = [s.detach().half().float().requires_grad_(s.requires_grad) for s in sources]
    found = gradients(train_block(x, rounded, spec, batch)[0], x, rounded, spec)
    plain, masks = reference(x, sources, spec, batch)
    exact_x, exact_sources = double([x])[0], double(sources)
    exact = gradients(reference(exact_x, exact_sources, spec, batch, masks)[0], exact_x, exact_sources, spec)
    theirs = gradients(plain, x, sources, spec)
    assert rms(found["x"].double() - exact["x"]) > 20 * rms(theirs["x"].double() - exact["x"])


@pytest.mark.parametrize("name", ["residual", "stem", "pointwise", "depthwise_same"])
def test_statistics(name: str):
    spec = BLOCKS[name]
    sources, x, batch = make_sources(spec), make_input(spec), modes_of(spec, "batch")
    stats = train_block(x, sources, spec, batch)[3]
    ((_, stages),) = aten.split((spec,), double(sources))
    value, at = x.detach().double(), 0
    for (_, stage), tensors in zip(spec.stages(), stages, strict=True):
        bare = aten.convolve(stage, value, tensors["weight"], None)
        for row, expected in enumerate((
            bare.mean((0, 2, 3)), bare.var((0, 2, 3), unbiased=False), bare.var((0, 2, 3))
        )):  # fmt: skip
            torch.testing.assert_close(stats[row, at : at + stage.out_channels], expected, rtol=2e-6, atol=2e-6)
        at += stage.out_channels
        value = aten.run_stage(stage, value, tensors, training=True)
    assert at == stats.shape[1]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["residual", "separable", "stem"])
def test_same_bits(name: str, mode: str):
    """Twice, and at one and at two threads."""
    spec = BLOCKS[name]
    sources, x, batch = make_sources(spec), make_input(spec, 9, (30, 31)), modes_of(spec, mode)

    def run(threads: int) -> dict[str, Tensor]:
        torch.set_num_threads(threads)
        y, _, _, stats = train_block(x, sources, spec, batch)
        return {"y": y, "stats": stats, **gradients(y, x, sources, spec)}

    runs = [run(threads) for threads in (1, 2, 2, 3)]
    for other in runs[1:]:
        for key, value in runs[0].items():
            assert torch.equal(value, other[key]), key


VIEWS = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "sliced": lambda x: torch.cat([x, x], 1)[:, : x.shape[1], 1:, ::2],
    "expanded": lambda x: x[:1].expand(4, -1, -1, -1),
    "one_pixel": lambda x: x[:, :, :1, :1],
    "one_row": lambda x: x[:, :, :1],
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("mode", ["frozen", "batch"])
@pytest.mark.parametrize("name", ["residual", "off_the_vector", "pointwise"])
def test_layouts(name: str, mode: str, view):
    spec = BLOCKS[name]
    sources, batch = make_sources(spec), modes_of(spec, mode)
    x = view(make_input(spec).detach()).requires_grad_()
    y = train_block(x, sources, spec, batch)[0]
    assert y.is_contiguous(memory_format=torch.channels_last)
    found = gradients(y, x, sources, spec)
    exact_x, exact_sources = double([x])[0], double(sources)
    _, masks = reference(x, sources, spec, batch)
    exact = gradients(reference(exact_x, exact_sources, spec, batch, masks)[0], exact_x, exact_sources, spec)
    for key, value in found.items():
        scale = max(float(exact[key].abs().max()), float(exact["x"].abs().max()))
        torch.testing.assert_close(value.double(), exact[key], rtol=1e-4, atol=1e-4 * scale)


def test_only_what_is_needed():
    spec = BLOCKS["residual"]
    sources, x = make_sources(spec), make_input(spec).detach()
    for source in sources[1:]:
        source.requires_grad_(False)
    y = train_block(x, sources, spec, modes_of(spec, "batch"))[0]
    (found,) = torch.autograd.grad(y.sum(), [sources[0]])
    exact_sources = double(sources)
    exact = reference(x.double(), exact_sources, spec, modes_of(spec, "batch"))[0]
    (expected,) = torch.autograd.grad(exact.sum(), [exact_sources[0]])
    assert rms(found.double() - expected) < 1e-4


@pytest.mark.parametrize("mode", ["frozen", "batch"])
def test_the_second_derivative_is_refused_in_a_sentence(mode: str):
    spec = BLOCKS["residual"]
    sources, x = make_sources(spec), make_input(spec)
    y = train_block(x, sources, spec, modes_of(spec, mode))[0]
    (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="fused training has first derivatives only"):
        first.sum().backward()


@pytest.mark.parametrize("mode", ["frozen", "batch"])
@pytest.mark.parametrize("name", ["residual", "stem", "pointwise", "ends_depthwise"])
def test_opcheck(name: str, mode: str):
    spec = BLOCKS[name]
    from mobilenet_ext.spec import encode

    program, constants = encode((spec,))
    arguments = (make_input(spec), make_sources(spec), None, program, constants, modes_of(spec, mode))
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(torch.ops.mobilenet_ext.train_block.default, arguments, test_utils=checks)


def test_one_value_per_channel_raises_as_batch_norm_does():
    spec = BLOCKS["pointwise"]
    x = make_input(spec, 1, (1, 1))
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        train_block(x, make_sources(spec), spec, [1])


def test_saved_bytes():
    """Frozen: the input alone. Batch statistics: the input and the results of the depthwise and project stages."""
    spec = BLOCKS["stride_2"]
    sources, x = make_sources(spec), make_input(spec)
    weights = {s.data_ptr() for s in sources}

    def saved(mode: str) -> int:
        sizes: dict[int, int] = {}

        def pack(t: Tensor) -> Tensor:
            if t.data_ptr() not in weights and t.dtype == torch.float32:
                sizes[t.data_ptr()] = t.nbytes
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            train_block(x, sources, spec, modes_of(spec, mode))
        return sum(sizes.values())

    assert saved("frozen") == x.nbytes
    pixels = 5 * 6 * 7
    assert saved("batch") == x.nbytes + 4 * pixels * (24 + 12)
