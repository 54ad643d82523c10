"""torch.compile on fused models: one graph, no recompiles for weights, packed once."""

from __future__ import annotations

import pytest
import torch
from fused_cases import (
    assert_close,
    assert_fused_right,
    example,
    fused_path,
    make_block,
    make_run,
    packs,
    plain_result,
    randomize,
)
from torch import nn
from torch._dynamo.utils import counters

from mobilenet_ext._library import native
from mobilenet_ext.fusion import disabled, freeze, fuse, refresh
from mobilenet_ext.models import MobileNetV2


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def network() -> nn.Module:
    return fuse(randomize(MobileNetV2(num_classes=10, alpha=0.25)).eval())


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


def test_inductor_one_graph_one_op_packed_once():
    fused, x = network(), example(1, 3, 64)
    compiled = torch.compile(fused, fullgraph=True)
    with packs(1):
        for _ in range(3):
            assert_fused_right(fused, x, compiled)
    assert graphs() == 1
    assert counters["stats"]["calls_captured"] == 1


def test_dynamic_batch_is_one_more_graph():
    fused = fuse(make_run())
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    for batch in (2, 3, 4, 5):
        assert_fused_right(fused, example(batch), compiled)
    assert graphs() == 2


def test_dynamic_sizes_marked():
    fused = fuse(make_run())
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch, size in ((2, 10), (3, 12), (4, 7)):
        assert_fused_right(fused, example(batch, size=size), compiled)
    assert graphs() == 1


def run_compiled_one_by_one(blocks: list[nn.Module]) -> None:
    x = example()
    expected = [plain_result(block, x) for block in blocks]
    for block, y in zip(blocks, expected, strict=True):
        block.compile(fullgraph=True, backend="aot_eager")
        with torch.no_grad(), fused_path():
            assert_close(block(x), y)


def test_blocks_of_one_program_share_a_graph():
    """Each still has weights and a slot of its own."""
    run_compiled_one_by_one([fuse(randomize(make_block(), seed)) for seed in range(3)])
    assert graphs() == 1


def test_blocks_of_different_programs_do_not_share_a_graph():
    run_compiled_one_by_one([fuse(make_block(1)), fuse(make_block(2)), fuse(make_block(1))])
    assert graphs() == 2


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_gradients(backend: str):
    plain = make_block()
    fused = fuse(plain)
    compiled = torch.compile(fused, fullgraph=True, backend=backend)
    inputs = [example().requires_grad_() for _ in range(2)]
    with fused_path():
        y = compiled(inputs[0])
    expected = plain(inputs[1])
    assert_close(y, expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    assert_close(inputs[0].grad, inputs[1].grad)
    for ours, theirs in zip(fused.parameters(), plain.parameters(), strict=True):
        assert_close(ours.grad, theirs.grad)


def test_training_and_back():
    plain, x = make_block(), example()
    fused = fuse(plain)
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    assert_fused_right(fused, x, compiled)
    fused.train()
    plain.train()
    with fused_path(False):
        assert_close(compiled(x), plain(x))
    for ours, theirs in zip(fused.buffers(), plain.buffers(), strict=True):
        assert_close(ours, theirs)
    fused.eval()
    assert_fused_right(fused, x, compiled)


def test_one_norm_in_training_is_seen():
    fused, x = fuse(make_block()), example()
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    assert_fused_right(fused, x, compiled)
    fused.conv[0][1].train()
    with torch.no_grad(), fused_path(False):
        compiled(x)


def test_hooked_child_compiles_plainly():
    fused, x = fuse(make_block()), example()
    fused.conv[0].register_forward_hook(lambda module, args, output: output * 2)
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    with torch.no_grad(), fused_path(False):
        assert_close(compiled(x), plain_result(fused, x))


def test_disabled_is_seen():
    fused, x = fuse(make_block()), example()
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    assert_fused_right(fused, x, compiled)
    with torch.no_grad(), disabled(), fused_path(False):
        compiled(x)
    assert_fused_right(fused, x, compiled)


@pytest.mark.parametrize("stride", [1, 2])
def test_autocast(stride: int):
    fused, x = fuse(make_block(stride)), example()
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), fused_path():
        y, expected = compiled(x), fused(x)
    assert y.dtype == expected.dtype
    assert torch.equal(y, expected)


@pytest.mark.parametrize("preserve", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_strides_are_those_of_eager(preserve: bool, layout: torch.memory_format):
    fused = fuse(make_run(), preserve_format=preserve)
    x = example().contiguous(memory_format=layout)
    compiled = torch.compile(fused, fullgraph=True)
    y = assert_fused_right(fused, x, compiled)
    with torch.no_grad():
        assert y.stride() == fused(x).stride()


def test_inside_a_larger_graph():
    fused, x = fuse(make_run()), example()

    @torch.compile(fullgraph=True)
    def function(x: torch.Tensor) -> torch.Tensor:
        return fused(x.relu() + 1).tanh().sum((2, 3))

    with torch.no_grad(), fused_path():
        y = function(x)
    assert_close(y, plain_result(fused, x.relu() + 1).tanh().sum((2, 3)))


def test_freezing():
    fused, x = fuse(make_block()), example()
    with torch._inductor.config.patch(freezing=True), torch.no_grad(), fused_path():
        y = torch.compile(fused, fullgraph=True)(x)
    assert_close(y, plain_result(fused, x))


def test_a_frozen_model_is_no_input_of_its_graph():
    """Its weights stay in the slot; what freeze promises to see is seen, and the next freeze brings the graph back."""
    taken: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]):
        taken.append(len(inputs))
        return graph

    fused, x = freeze(network()), example(1, 3, 64)
    compiled = torch.compile(fused, fullgraph=True, backend=backend)
    native.reset_counters()
    with torch.no_grad():
        y = compiled(x)
        assert taken == [2]  # the image and the slot
        assert any(name.startswith("block.") for name in native.counters())
        assert torch.equal(y, fused(x))
        graphs_before = len(taken)
        state = fused.state_dict()
        fused.load_state_dict({name: 1.25 * t if t.is_floating_point() else t for name, t in state.items()})
        changed = compiled(x)
        assert not torch.equal(changed, y)
        assert torch.equal(changed, fused(x))
        assert len(taken) > graphs_before
        freeze(fused)
        graphs_before = len(taken)
        assert torch.equal(compiled(x), changed)
        assert len(taken) == graphs_before
        next(fused.parameters()).data[0].mul_(2.0)
        refresh(fused)
        again = compiled(x)
        assert not torch.equal(again, changed)
        assert torch.equal(again, fused(x))
    fused.train()
    assert compiled(x).requires_grad
