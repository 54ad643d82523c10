"""fuse, unfuse, freeze and disabled: what changes hands and what stays."""

from __future__ import annotations

import copy
import os
import subprocess
import sys

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

from mobilenet_ext.fusion import disabled, freeze, fuse, refresh, unfuse
from mobilenet_ext.models import InvertedResidual, MobileNetV1, MobileNetV2
from mobilenet_ext.modules import FusedInvertedResidual, FusedModule, FusedSequential


def classes(model: nn.Module) -> list[type]:
    return [type(module) for module in model.modules()]


def contents(model: nn.Module) -> list[list[str]]:
    return [list(vars(module)) for module in model.modules()]


def small_network() -> nn.Module:
    return randomize(MobileNetV2(num_classes=10, alpha=0.25)).eval()


MODELS = {
    "block": make_block,
    "run": make_run,
    "v1": lambda: randomize(MobileNetV1(num_classes=10, alpha=0.25)).eval(),
    "v2": small_network,
    "inside": lambda: nn.ModuleDict({"a": make_block(), "b": nn.ModuleList([nn.Tanh(), make_block()])}),
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_there_and_back(make):
    model = make()
    before, inside = classes(model), contents(model)
    fused = fuse(model)
    assert classes(model) == before
    assert any(isinstance(module, FusedModule) for module in fused.modules())
    assert list(fused.state_dict()) == list(model.state_dict())
    assert all(isinstance(ours, theirs) for ours, theirs in zip(fused.modules(), before, strict=True))
    model.load_state_dict(fused.state_dict(), strict=True)
    fused.load_state_dict(model.state_dict(), strict=True)
    plain = unfuse(fused)
    assert any(isinstance(module, FusedModule) for module in fused.modules())
    assert classes(plain) == before
    assert contents(plain) == inside
    for ours, theirs in zip(plain.state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kind", ["v1", "v2"])
def test_whole_networks(kind: str):
    model = MODELS[kind]()
    fused, x = fuse(model), example(1, 3, 64)
    assert isinstance(fused, FusedModule)
    with torch.no_grad():
        assert_close(assert_fused_right(fused, x), model(x))


def test_inplace_keeps_the_parameters():
    model = make_run()
    parameters, modules = list(model.parameters()), list(model.modules())
    assert fuse(model, inplace=True) is model
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    assert_fused_right(model, example())
    assert unfuse(model, inplace=True) is model
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    with torch.no_grad(), fused_path(False):
        model(example())


def test_fusing_twice_is_fusing_once():
    once = fuse(small_network())
    twice = fuse(once)
    assert classes(once) == classes(twice)
    assert classes(unfuse(twice)) == classes(small_network())
    assert_fused_right(twice, example(1, 3, 64))


def test_fuse_matches_again_what_has_changed_since():
    fused, x = fuse(make_block()), example()
    fused.conv[3].eps = 0.5
    with torch.no_grad(), fused_path(False):
        fused(x)
    assert_fused_right(fuse(fused), x)


def test_constructed_modules_take_part():
    model = nn.Sequential(nn.Tanh(), FusedInvertedResidual(16, 16, 1, 4)).eval()
    assert classes(fuse(model))[2] is FusedInvertedResidual
    assert classes(unfuse(model))[2] is InvertedResidual


def test_subclass_of_a_fused_class_keeps_its_class():
    class Mine(FusedInvertedResidual):
        pass

    model = nn.Sequential(Mine(16, 16, 1, 4)).eval()
    assert_fused_right(model, example())
    plain = unfuse(model)
    assert type(plain[0]) is Mine
    with torch.no_grad(), fused_path(False):
        plain(example())


def test_one_block_used_twice():
    block = make_block()
    model = nn.ModuleDict({"a": block, "b": nn.ModuleList([block])})
    fused = fuse(model)
    assert fused["a"] is fused["b"][0]
    assert_fused_right(fused["a"], example())


def test_run_with_one_block_twice():
    block = make_block()
    fused, x = fuse(nn.Sequential(block, block)), example()
    with torch.no_grad():
        assert_close(assert_fused_right(fused, x), block(block(x)))
        fused[0].conv[0][0].weight.mul_(1.5)
    assert_fused_right(fused, x)


def test_wrapped_by_torch_compile():
    torch._dynamo.reset()
    model, x = torch.compile(make_block(), backend="aot_eager", fullgraph=True), example()
    with torch.no_grad():
        expected = model(x)
        fused = fuse(model, inplace=True)
        assert fused is model
        with fused_path():
            assert_close(fused(x), expected)
        with fused_path():
            assert_close(fuse(model)(x), expected)


def test_nothing_to_fuse_leaves_everything():
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    fused = fuse(model)
    assert classes(fused) == classes(model)
    assert torch.equal(fused(torch.ones(1, 4)), model(torch.ones(1, 4)))


@pytest.mark.parametrize("function", [fuse, unfuse, refresh, freeze])
def test_not_a_module(function):
    with pytest.raises(TypeError, match=r"model is a list; allowed: a torch\.nn\.Module"):
        function([1])


def test_unsupported_norm_keeps_its_block_from_being_fused():
    model = make_run()
    model[1].conv[3] = nn.GroupNorm(4, 16)
    fused, x = fuse(model), example()
    assert type(fused[1]) is InvertedResidual
    assert isinstance(fused[0], FusedModule)
    assert isinstance(fused[2], FusedModule)
    with torch.no_grad(), fused_path():
        assert_close(fused(x), model(x))


def test_disabled_nests():
    fused, x = fuse(make_block()), example()
    with torch.no_grad():
        with fused_path(False), disabled():
            with disabled():
                fused(x)
            fused(x)
        with fused_path():
            fused(x)


def test_disabled_by_the_environment():
    code = (
        "import torch; from mobilenet_ext import _C; from mobilenet_ext.modules import FusedInvertedResidual;"
        "block = FusedInvertedResidual(8, 8, 1, 2).eval(); block(torch.ones(1, 8, 4, 4));"
        "assert not sum(_C.counters().values()), _C.counters()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "MOBILENET_EXT_DISABLE": "1"})


@pytest.mark.parametrize("make", [make_block, make_run, small_network])
def test_preserve_format(make):
    model = make()
    channels = 16 if make is not small_network else 3
    fused, x = fuse(model, preserve_format=True), example(1, channels, 64)
    assert_fused_right(fused, x)
    if make is small_network:
        fused = fused.features
    for layout in (torch.contiguous_format, torch.channels_last):
        y = assert_fused_right(fused, x.contiguous(memory_format=layout))
        assert y.is_contiguous(memory_format=layout)
    flat = nn.Sequential(fused, nn.Flatten()) if make is not small_network else None
    if flat is not None:
        with torch.no_grad():
            fused(x).view(1, -1)


def test_a_run_between_plain_modules():
    model = nn.Sequential(nn.Tanh(), make_block(), make_block(), nn.Tanh(), make_block())
    fused, x = fuse(model), example()
    assert type(fused) is FusedSequential
    with torch.no_grad():
        assert_close(assert_fused_right(fused, x), model(x))
    assert_close(plain_result(fused, x), plain_result(copy.deepcopy(fused), x))


def test_public_names_are_functions_whatever_was_imported_first():
    code = (
        "import mobilenet_ext.fusion, mobilenet_ext.verification, mobilenet_ext as m;"
        "m.unfuse; assert all(callable(getattr(m, n)) for n in ('fuse', 'verify', 'fusion_report', 'refresh'))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
