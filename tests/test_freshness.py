"""Packed weights are never stale: every way to change a weight that design promises, eager and compiled."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from fused_cases import assert_close, assert_fused_right, example, fused_path, make_block, make_run, packs, plain_result
from torch import nn
from weight_edits import (
    EDITS,
    changed_state,
    first_weight,
    fused_optimizer,
    half_and_back,
    in_place,
    load,
    new_data,
    refreshed,
    train_statistics,
)

from mobilenet_ext.freshness import Slot, bump_epoch
from mobilenet_ext.fusion import freeze, fuse, refresh

Edit = Callable[[nn.Module], None]
MODELS = {"block": make_block, "run": make_run}


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
@pytest.mark.parametrize("kind", MODELS)
def test_eager_sees(kind: str, edit: Edit):
    fused, x = fuse(MODELS[kind]()), example()
    before = assert_fused_right(fused, x)
    with packs(0):
        assert_fused_right(fused, x)
    edit(fused)
    after = assert_fused_right(fused, x)
    assert not torch.equal(before, after), "the edit had no effect, so this test proves nothing"
    with packs(0):
        assert_fused_right(fused, x)


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_compiled_sees(edit: Edit):
    fused, x = fuse(make_block()), example()
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    before = assert_fused_right(fused, x, compiled)
    with packs(0):
        assert_fused_right(fused, x, compiled)
    edit(fused)
    after = assert_fused_right(fused, x, compiled)
    assert not torch.equal(before, after), "the edit had no effect, so this test proves nothing"
    with packs(0):
        assert_fused_right(fused, x, compiled)


def test_compiled_does_not_recompile_for_new_weights():
    fused, x = fuse(make_block()), example()
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    assert_fused_right(fused, x, compiled)
    with torch.compiler.set_stance("fail_on_recompile"):
        for edit in (in_place, new_data, load, half_and_back, refreshed):
            edit(fused)
            with torch.no_grad():
                compiled(x)
    assert_fused_right(fused, x, compiled)


def test_eager_is_right_after_the_graph_ran_with_other_tensors():
    fused, x = fuse(make_block()), example()
    other = {name: value * 1.5 for name, value in fused.named_parameters()}
    compiled = torch.compile(
        lambda parameters, x: torch.func.functional_call(fused, parameters, (x,)), fullgraph=True, backend="aot_eager"
    )
    mine = assert_fused_right(fused, x)
    with torch.no_grad(), fused_path():
        theirs = compiled({name: value.detach() for name, value in other.items()}, x)
    assert not torch.equal(mine, theirs)
    assert torch.equal(assert_fused_right(fused, x), mine)


def test_functional_call_packs_what_it_is_given():
    fused, x = fuse(make_block()), example()
    mine = assert_fused_right(fused, x)
    other = {name: value.detach() * 1.5 for name, value in fused.named_parameters()}
    with torch.no_grad(), fused_path():
        theirs = torch.func.functional_call(fused, other, (x,))
    changed = fuse(make_block())
    changed.load_state_dict(other, strict=False)
    assert_close(theirs, plain_result(changed, x))
    assert torch.equal(assert_fused_right(fused, x), mine)


def test_inference_tensors_are_compared_every_time():
    with torch.inference_mode():
        fused, x = fuse(make_block()), example()
        before = assert_fused_right(fused, x)
        assert first_weight(fused).is_inference()
        first_weight(fused).mul_(1.5)
        after = assert_fused_right(fused, x)
        assert not torch.equal(before, after)
        with packs(0):
            assert_fused_right(fused, x)


def test_inference_mode_around_ordinary_weights():
    fused, x = fuse(make_block()), example()
    with torch.inference_mode():
        assert_fused_right(fused, x)
        with packs(0):
            assert_fused_right(fused, x)


def test_a_slot_in_inference_mode_can_be_saved_for_backward():
    with torch.inference_mode():
        fused = fuse(make_block())
    assert not Slot().tensor.is_inference()
    fused = fuse(make_block())
    with torch.inference_mode():
        clone = copy.deepcopy(fused)
    del clone


def test_gradients_see_new_weights():
    fused, x = fuse(make_block()), example()
    first = fused(x)
    for edit in (in_place, new_data, fused_optimizer):
        edit(fused)
        with fused_path():
            y = fused(x)
        assert y.requires_grad
        assert_close(y, plain_result(fused, x))
        assert not torch.equal(first, y)
        first = y
        assert_fused_right(fused, x)


def test_frozen_skips_checks_until_told():
    fused, x = freeze(fuse(make_block())), example()
    before = assert_fused_right(fused, x)
    first_weight(fused).data.mul_(1.5)
    bump_epoch()
    with torch.no_grad(), packs(0), fused_path():
        assert torch.equal(fused(x), before)
    refresh(fused)
    assert not torch.equal(assert_fused_right(fused, x), before)
    for edit in (load, half_and_back, train_statistics):
        edit(fused)
        assert_fused_right(fused, x)


def test_a_frozen_child_of_a_plain_model_sees_its_checkpoint():
    model, x = nn.Sequential(nn.Tanh(), make_block(), nn.Tanh()), example()
    fused = freeze(fuse(model))
    assert_fused_right(fused, x)
    fused.load_state_dict(changed_state(fused))
    assert_fused_right(fused, x)


def test_compiled_optimizer_step_is_seen():
    fused, x = fuse(make_block()), example()
    optimizer = torch.optim.SGD(fused.parameters(), lr=0.5)
    before = assert_fused_right(fused, x)
    fused(x).square().mean().backward()

    @torch.compile(backend="aot_eager")
    def compiled_step() -> None:
        optimizer.step()

    compiled_step()
    assert not torch.equal(assert_fused_right(fused, x), before)
