"""Packed weights are never stale: every way to change a weight that design promises, eager and compiled."""

from __future__ import annotations

import copy
import gc
import io
import threading
from collections.abc import Callable

import pytest
import torch
from fused_cases import assert_close, assert_fused_right, example, fused_path, make_block, make_run, packs, plain_result
from mobilenet_ext import _C
from mobilenet_ext.freshness import Slot, bump_epoch
from mobilenet_ext.fuse import freeze, fuse, refresh, unfuse
from torch import nn

Edit = Callable[[nn.Module], None]


def first_weight(model: nn.Module) -> nn.Parameter:
    return next(model.parameters())


def first_norm(model: nn.Module) -> nn.BatchNorm2d:
    return next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))


def changed_state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value * 1.5 if value.is_floating_point() else value for key, value in model.state_dict().items()}


def step(model: nn.Module, make: Callable[..., torch.optim.Optimizer]) -> None:
    optimizer = make(model.parameters())
    model(example()).square().mean().backward()
    optimizer.step()


def in_place(model: nn.Module) -> None:
    with torch.no_grad():
        first_weight(model).mul_(1.5)


def in_place_in_inference_mode(model: nn.Module) -> None:
    with torch.inference_mode():
        first_weight(model).mul_(1.5)


def foreach_function(model: nn.Module) -> None:
    with torch.no_grad():
        torch._foreach_mul_(list(model.parameters()), 1.1)


def foreach_optimizer(model: nn.Module) -> None:
    step(model, lambda parameters: torch.optim.Adam(parameters, lr=0.05, foreach=True))


def fused_optimizer(model: nn.Module) -> None:
    step(model, lambda parameters: torch.optim.Adam(parameters, lr=0.05, fused=True))


def data_optimizer(model: nn.Module) -> None:
    """An optimizer that writes to ``.data``, which leaves no trace in the versions."""

    class Data(torch.optim.Optimizer):
        def __init__(self, parameters: object) -> None:
            super().__init__(parameters, {})

        def step(self) -> None:
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.data.add_(parameter.grad, alpha=-0.5)

    step(model, Data)


def load(model: nn.Module) -> None:
    model.load_state_dict(changed_state(model))


def load_assigned(model: nn.Module) -> None:
    model.load_state_dict(changed_state(model), assign=True)


def new_data(model: nn.Module) -> None:
    parameter = first_weight(model)
    parameter.data = parameter.data * 1.5


def new_data_twice(model: nn.Module) -> None:
    """The second storage may get the address of the first one's predecessor."""
    parameter = first_weight(model)
    parameter.data = torch.zeros_like(parameter)
    parameter.data = torch.full_like(parameter, 0.1)


def new_parameter(model: nn.Module) -> None:
    owner = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    owner.weight = nn.Parameter(owner.weight.detach() * 1.5)


def new_module(model: nn.Module) -> None:
    parent = next(module for module in model.modules() if isinstance(module._modules.get("0"), nn.Conv2d))
    parent[0] = copy.deepcopy(parent[0])
    with torch.no_grad():
        parent[0].weight.mul_(1.5)


def swapped_tensors(model: nn.Module) -> None:
    parameter = first_weight(model)
    torch.utils.swap_tensors(parameter, nn.Parameter(parameter.detach() * 1.5))


def half_and_back(model: nn.Module) -> None:
    with torch.no_grad():
        first_weight(model).mul_(1.0001)  # away from what float16 holds exactly
    model.half().float()


def double_and_back(model: nn.Module) -> None:
    model.double()
    with torch.no_grad():
        first_weight(model).mul_(1.5)
    model.float()


def running_statistics(model: nn.Module) -> None:
    first_norm(model).running_mean.add_(0.5)


def new_buffer(model: nn.Module) -> None:
    first_norm(model).running_var = first_norm(model).running_var * 4


def train_statistics(model: nn.Module) -> None:
    model.train()
    with torch.no_grad():
        model(example() + 1)
    model.eval()


def train_one_norm(model: nn.Module) -> None:
    norm = first_norm(model)
    norm.train()
    norm(torch.randn(2, norm.num_features, 4, 4) + 1)
    norm.eval()


def update_bn(model: nn.Module) -> None:
    torch.optim.swa_utils.update_bn([example() + 1, example() - 1], model)
    model.eval()


def epsilon(model: nn.Module) -> None:
    first_norm(model).eps = 1e-5  # the same: nothing may break
    first_norm(model).bias.data = first_norm(model).bias.data + 1


def refreshed(model: nn.Module) -> None:
    first_weight(model).data[0].mul_(3)
    refresh(model)


def refreshed_numpy(model: nn.Module) -> None:
    first_weight(model).detach().numpy()[0] *= 3
    refresh(model)


EDITS: list[Edit] = [
    in_place,
    in_place_in_inference_mode,
    foreach_function,
    foreach_optimizer,
    fused_optimizer,
    data_optimizer,
    load,
    load_assigned,
    new_data,
    new_data_twice,
    new_parameter,
    new_module,
    swapped_tensors,
    half_and_back,
    double_and_back,
    running_statistics,
    new_buffer,
    train_statistics,
    train_one_norm,
    update_bn,
    epsilon,
    refreshed,
    refreshed_numpy,
]
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


def test_deepcopy_has_its_own_weights():
    fused, x = fuse(make_run()), example()
    mine = assert_fused_right(fused, x)
    clone = copy.deepcopy(fused)
    assert torch.equal(assert_fused_right(clone, x), mine)
    in_place(clone)
    assert not torch.equal(assert_fused_right(clone, x), mine)
    with packs(0):
        assert torch.equal(assert_fused_right(fused, x), mine)


def test_shallow_copy_is_right():
    fused, x = fuse(make_block()), example()
    mine = assert_fused_right(fused, x)
    clone = copy.copy(fused)
    clone._modules = dict(fused._modules, conv=copy.deepcopy(fused.conv))
    in_place(clone)
    assert not torch.equal(assert_fused_right(clone, x), mine)
    assert torch.equal(assert_fused_right(fused, x), mine)


def test_save_and_load():
    fused, x = fuse(make_run()), example()
    mine = assert_fused_right(fused, x)
    file = io.BytesIO()
    torch.save(fused, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert type(loaded) is type(fused)
    with packs(1):
        assert torch.equal(assert_fused_right(loaded, x), mine)
    in_place(loaded)
    assert not torch.equal(assert_fused_right(loaded, x), mine)


def test_eight_threads_and_one_first_call():
    fused = fuse(make_run())
    inputs = [example() + index for index in range(8)]
    expected = [plain_result(fused, x) for x in inputs]
    barrier, errors = threading.Barrier(8), []

    def work(index: int) -> None:
        try:
            barrier.wait()
            for _ in range(50):
                with torch.no_grad():
                    y = fused(inputs[index])
                assert_close(y, expected[index])
        except BaseException as error:
            errors.append(error)

    with fused_path():
        threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not errors


def test_unfuse_and_fuse_again():
    fused, x = fuse(make_run()), example()
    before = assert_fused_right(fused, x)
    unfuse(fused, inplace=True)
    in_place(fused)
    fuse(fused, inplace=True)
    assert not torch.equal(assert_fused_right(fused, x), before)


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


def test_slots_are_freed():
    fused, x = fuse(make_run()), example()
    gc.collect()
    before = _C.slot_count()
    assert_fused_right(fused, x)
    assert _C.slot_count() > before
    del fused  # by reference counting alone: no cycle holds a slot
    assert _C.slot_count() == before


def test_another_instruction_set_is_packed_for():
    fused, x = fuse(make_block()), example()
    mine = assert_fused_right(fused, x)
    try:
        _C.set_isa_cap("scalar")
        assert_fused_right(fused, x)
    finally:
        _C.set_isa_cap(None)
    assert torch.equal(assert_fused_right(fused, x), mine)


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
