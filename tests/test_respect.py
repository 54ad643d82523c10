"""Whatever sits on or replaces an inner module is respected: the fused path would skip it, so the plain modules run."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from fused_cases import assert_close, assert_fused_right, example, fused_path, make_block, make_run, plain_result
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from mobilenet_ext.fusion import fuse


def hook_forward(fused: nn.Module) -> None:
    fused.conv[0][0].register_forward_hook(lambda *_: None)


def hook_pre(fused: nn.Module) -> None:
    fused.conv[1].register_forward_pre_hook(lambda *_: None)


def hook_backward(fused: nn.Module) -> None:
    fused.conv[2].register_full_backward_hook(lambda *_: None)


def hook_container(fused: nn.Module) -> None:
    fused.conv.register_forward_hook(lambda *_: None)


def parametrized(fused: nn.Module) -> None:
    class Double(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return 2 * weight

    parametrize.register_parametrization(fused.conv[2], "weight", Double())


def pruned(fused: nn.Module) -> None:
    prune.l1_unstructured(fused.conv[2], "weight", amount=0.5)


def weight_norm(fused: nn.Module) -> None:
    parametrizations.weight_norm(fused.conv[2])


def own_forward(fused: nn.Module) -> None:
    fused.conv[2].forward = lambda x: nn.Conv2d.forward(fused.conv[2], x) * 2


def other_class(fused: nn.Module) -> None:
    class Louder(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 2

    fused.conv[2].__class__ = Louder


def other_module(fused: nn.Module) -> None:
    fused.conv[0][2] = nn.Hardswish()


def one_more_module(fused: nn.Module) -> None:
    fused.conv.append(nn.Tanh())


def no_statistics(fused: nn.Module) -> None:
    fused.conv[3].running_mean = fused.conv[3].running_var = None


def other_epsilon(fused: nn.Module) -> None:
    fused.conv[3].eps = 0.5


def other_stride(fused: nn.Module) -> None:
    fused.conv[1][0].dilation = (2, 2)
    fused.conv[1][0].padding = (2, 2)


def no_shortcut(fused: nn.Module) -> None:
    fused.use_shortcut = False


def double_weight(fused: nn.Module) -> None:
    fused.conv[3].running_mean = fused.conv[3].running_mean.double()
    fused.conv[3].running_var = fused.conv[3].running_var.double()


CHANGES = {
    hook_forward: r"conv.0.0 has a forward hook",
    hook_pre: r"conv.1 has a forward pre-hook",
    hook_backward: r"conv.2 has a backward hook",
    hook_container: r"conv has a forward hook",
    parametrized: r"conv.2 is parametrized",
    pruned: r"conv.2 has a forward pre-hook",
    weight_norm: r"conv.2 is parametrized",
    own_forward: r"forward of conv.2 was replaced",
    other_class: r"conv.2 was a Conv2d and is a Louder",
    other_module: r"conv.0.2 was a ReLU6 and is a Hardswish",
    one_more_module: r"children of conv changed",
    no_statistics: r"conv.3 has no running statistics",
    other_epsilon: r"eps of conv.3 changed from 1e-05 to 0.5",
    other_stride: r"padding of conv.1.0 changed|dilation of conv.1.0 changed",
    no_shortcut: r"use_shortcut of the module itself changed",
    double_weight: r"conv.3.running_mean is a Tensor of torch.float64",
}


@pytest.mark.parametrize(("change", "reason"), CHANGES.items(), ids=lambda v: getattr(v, "__name__", ""))
def test_a_changed_inside_runs_plainly_and_says_so(change: Callable[[nn.Module], None], reason: str):
    fused, x = fuse(make_block()), example()
    assert_fused_right(fused, x)
    change(fused)
    if change is not double_weight:  # the plain modules do not take it either
        with torch.no_grad(), fused_path(False):
            y = fused(x)
        assert torch.equal(y, plain_result(fused, x))
        assert y.is_contiguous(memory_format=torch.channels_last)
    (chain,) = fused._mobilenet_ext.chains()
    assert re.search(reason, chain.reason(fused)), chain.reason(fused)


def test_removed_hook_fuses_again():
    fused, x = fuse(make_block()), example()
    calls = []
    handle = fused.conv[0].register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad(), fused_path(False):
        fused(x)
    assert calls
    handle.remove()
    assert_fused_right(fused, x)


def test_hooks_on_the_fused_module_itself_run():
    fused, x = fuse(make_block()), example()
    calls = []
    fused.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad(), fused_path():
        fused(x)
    assert calls == [1]


def test_global_hooks_run_on_the_inner_modules():
    fused, x = fuse(make_block()), example()
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(type(module).__name__))
    try:
        with torch.no_grad(), fused_path(False):
            fused(x)
    finally:
        handle.remove()
    assert "Conv2d" in seen
    assert_fused_right(fused, x)


def test_run_with_a_hook_calls_its_blocks_which_stay_fused():
    fused, x = fuse(make_run()), example()
    assert_fused_right(fused, x)
    calls = []
    fused[1].register_forward_hook(lambda *_: calls.append(1))
    assert_fused_right(fused, x)
    assert calls


def test_a_longer_run_is_not_the_run_that_was_fused():
    fused, x = fuse(make_run()), example()
    fused.append(nn.Tanh())
    assert float(assert_fused_right(fused, x).abs().max()) <= 1
    del fused[0]
    assert_fused_right(fused, x)


def test_slices_of_a_fused_sequential_work():
    fused, x = fuse(make_run()), example()
    with torch.no_grad():
        assert_close(fused[1:](fused[:1](x)), plain_result(fused, x))
