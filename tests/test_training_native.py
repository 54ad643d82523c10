"""A block in training in native code, against the same scheme in Python (mobilenet_ext/training/block.py, backward.py).

The Python form is compared with float64 in test_training_block.py, as is whatever form the operator takes.
"""

from __future__ import annotations

import pytest
import torch
from training_cases import BLOCKS, make_input, make_sources, modes_of, train_block

from mobilenet_ext._library import native
from mobilenet_ext.backends.aten import split
from mobilenet_ext.memory_format import channels_last
from mobilenet_ext.spec import encode
from mobilenet_ext.training import op
from mobilenet_ext.training.block import Block

MODES = ("frozen", "batch", "mixed")
EPS = torch.finfo(torch.float32).eps


# The gradient of a dense convolution's input is PyTorch's.
CASES = [(name, dx) for name in BLOCKS for dx in (True, False) if not (dx and name.startswith("stem"))]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("name", "dx"), CASES)
def test_it_is_the_python_block(name: str, mode: str, dx: bool, isa: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(op.block, "CHUNK_BYTES", 2 * 24 * 12 * 13 * 4)
    spec = BLOCKS[name]
    sources, x, batch = make_sources(spec), channels_last(make_input(spec).detach()), modes_of(spec, mode)
    sources = [s.detach() for s in sources]
    program, constants = encode((spec,))
    ((_, tensors),) = split((spec,), sources)
    block = Block(spec, x, tensors, [bool(b) for b in batch])
    y, v, p, stats = block.forward()
    g = channels_last(torch.randn(y.shape, generator=torch.Generator().manual_seed(3)))
    native.reset_counters()
    v, p, rows = v.new_empty(0), v.new_empty(0), x.new_empty(0, dtype=torch.float64)
    if any(batch):
        found = torch.ops.mobilenet_ext.train_block_forward_native(
            x, sources, program, constants, batch, op.block.CHUNK_BYTES
        )
        _, v, p, rows = found
        torch.testing.assert_close(found[0], y, rtol=4 * EPS, atol=4 * EPS * float(y.abs().max()))
        torch.testing.assert_close(rows[0], torch.cat([mean for mean, _ in stats]), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(rows[1], torch.cat([var for _, var in stats]), rtol=1e-12, atol=1e-12)
        assert native.counters()[f"train_block_forward.{isa}"] == 1
    needs = [int(dx), *(int(not n.startswith("running")) for _, stage in spec.stages() for n in stage.sources)]
    call = op.BackwardCall(g, x, v, p, rows, sources, program, constants, batch, needs)
    expected = op.run_python(call)
    native.reset_counters()
    found = op.run_native(call)
    assert native.counters() == {
        f"{kind}{suffix}": 1
        for kind in ("train_block_backward", *(["depthwise_backward"] if spec.depthwise else []))
        for suffix in ("", f".{isa}")
    }
    # The same kernels; the two differ in where a coefficient or a sum over parts of the batch is rounded.
    largest = max(float(e.abs().max()) for e in expected if e.numel())
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.shape == theirs.shape
        torch.testing.assert_close(mine, theirs, rtol=16 * EPS, atol=16 * EPS * largest)


def test_bad_arguments_are_named():
    spec = BLOCKS["residual"]
    sources, x = [s.detach() for s in make_sources(spec)], channels_last(make_input(spec).detach())
    program, constants = encode((spec,))
    forward = torch.ops.mobilenet_ext.train_block_forward_native

    def run(x: torch.Tensor = x, sources: list[torch.Tensor] = sources, batch: tuple[int, ...] = (1, 1, 1)) -> None:
        forward(x, sources, program, constants, list(batch), 1 << 20)

    run()
    with pytest.raises(RuntimeError, match=r"x has shape .*this block takes"):
        run(x=channels_last(torch.randn(2, 9, 12, 13)))
    with pytest.raises(RuntimeError, match=r"x has shape .*channels_last"):
        run(x=torch.randn(2, 8, 12, 13))
    with pytest.raises(RuntimeError, match=r"x has shape .*not empty"):
        run(x=channels_last(torch.randn(0, 8, 12, 13)))
    with pytest.raises(RuntimeError, match="batch has 2 values; allowed: 3"):
        run(batch=(1, 1))
    with pytest.raises(RuntimeError, match=r"sources has shape .*allowed"):
        run(sources=[*sources[:1], sources[1][:-1], *sources[2:]])
    with pytest.raises(RuntimeError, match="this block needs more"):
        run(sources=sources[:-1])
    with pytest.raises(RuntimeError, match=r"sources has .* tensors; this block needs"):
        run(sources=[*sources, sources[-1]])


@pytest.mark.parametrize("dx", [True, False])
@pytest.mark.parametrize("mode", ["frozen", "batch"])
def test_the_first_convolution(mode: str, dx: bool):
    """Native where nobody asks for the image's gradient, else not; asked all the same, it refuses."""
    spec = BLOCKS["stem"]
    sources, x = make_sources(spec), make_input(spec).detach().requires_grad_(dx)
    native.reset_counters()
    train_block(x, sources, spec, modes_of(spec, mode))[0].sum().backward()
    assert native.counters().get("train_block_backward", 0) == int(not dx)
    program, constants = encode((spec,))
    image, frozen = channels_last(x.detach()), [s.detach() for s in sources]
    g = channels_last(torch.ones(5, 8, 6, 7))
    none, stats = image.new_empty(0), image.new_empty(0, dtype=torch.float64)
    call = op.BackwardCall(g, image, none, none, stats, frozen, program, constants, [0, 0, 0], [1] * (1 + len(frozen)))
    with pytest.raises(RuntimeError, match="the gradient of the input of a dense convolution"):
        op.run_native(call)
