"""verify and its command: what passes, what fails, and what the table and the exit status say."""

import argparse
import copy
import json
import sys
import types

import pytest
import torch
from torch import nn

from mobilenet_ext import loading
from mobilenet_ext.backends.aten import run_chain
from mobilenet_ext.commands import verify as command
from mobilenet_ext.matchers import Match, match_module, source_tensors
from mobilenet_ext.verification import verify


class ChainForward:
    """Stands in for a fused module: runs the chain of the plain one with weights rounded to ``precision``."""

    precision = torch.float32

    def forward(self, x):
        weights = [s.to(self.precision).to(s.dtype) if s.dim() > 1 else s for s in source_tensors(self, self.match)]
        return run_chain(self.match.chain, x, weights)


class Scale(nn.Module):
    def forward(self, x):
        return {"scaled": 2 * x, "parts": (x[:, :1], x[:, 1:])}


def unit(inputs, outputs, kernel=1, groups=1):
    layers = [
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, nn.ReLU6())


def plain_model():
    torch.manual_seed(0)
    model = nn.Sequential(unit(3, 16, 3), nn.MaxPool2d(2), unit(16, 16, 3, 16), nn.AvgPool2d(2), unit(16, 24), Scale())
    loading.randomise(model, torch.randn(4, 3, 32, 32))
    return model.eval()


def fake_fuse(model, only=("0", "2", "4"), precision=torch.float32):
    fused = copy.deepcopy(model)
    for path in only:
        module = fused.get_submodule(path)
        match = match_module(module)
        assert isinstance(match, Match)
        module.match = match
        module.__class__ = type("FusedSequential", (ChainForward, type(module)), {"precision": precision})
    return fused


X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def test_equal_models_pass_with_a_row_per_output_and_fused_module():
    model = plain_model()
    result = verify(model, fake_fuse(model), X)
    assert result.ok
    assert result.fused == 3
    assert [(row.kind, row.path) for row in result.rows] == [
        ("output", "[scaled]"),
        ("output", "[parts][0]"),
        ("output", "[parts][1]"),
        ("module", "0"),
        ("module", "2"),
        ("module", "4"),
    ]
    assert all(row.comparison.worst_ratio is not None for row in result.rows if row.kind == "module")
    table = str(result)
    assert "FusedSequential" in table
    assert "[parts][0]" in table
    assert "NO" not in table


def test_only_the_module_that_lost_precision_fails():
    model = plain_model()
    result = verify(model, fake_fuse(fake_fuse(model, ["0", "4"]), ["2"], torch.float16), X)
    failed = [row.path for row in result.rows if row.kind == "module" and not row.comparison.ok]
    assert failed == ["2"]
    assert not result.ok
    assert all(not row.comparison.ok for row in result.rows if row.kind == "output")
    assert "NO" in str(result)


def test_the_root_itself_may_be_fused():
    model = plain_model()[0]
    result = verify(model, fake_fuse(model, [""]), X)
    assert result.ok
    assert [row.path for row in result.rows] == ["", ""]
    assert "(model)" in str(result)


def test_models_are_left_as_they_were():
    model = plain_model()
    fused = fake_fuse(model)
    states = [{k: v.clone() for k, v in m.state_dict().items()} for m in (model, fused)]
    verify(model, fused, X)
    for module, state in zip((model, fused), states, strict=True):
        assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())
        assert not any(m._forward_pre_hooks for m in module.modules())
        assert next(module.parameters()).dtype == torch.float32


def test_nothing_fused_is_visible():
    model = plain_model()
    result = verify(model, model, X)
    assert result.ok
    assert result.fused == 0


def test_errors():
    model = plain_model()
    fused = fake_fuse(model)
    model[4][1].train()
    with pytest.raises(ValueError, match=r"model has modules in training mode; call eval\(\)"):
        verify(model, fused, X)
    model.eval()
    fused.add_module("more", nn.Identity().eval())
    with pytest.raises(ValueError, match="fused has the submodule 'more' that model does not have"):
        verify(model, fused, X)
    with pytest.raises(ValueError, match="example holds no floating-point tensor"):
        verify(model, model, torch.zeros(1, 3, 8, 8, dtype=torch.int64))


def test_result_as_json():
    model = plain_model()
    text = json.dumps(verify(model, fake_fuse(model), X).to_dict(), allow_nan=False)
    data = json.loads(text)
    assert data["ok"] is True
    assert data["fused"] == 3
    assert data["rows"][3]["class"] == "FusedSequential"


# The command


def run_command(*arguments):
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    args = parser.parse_args(["verify", *arguments])
    return args.run(args)


@pytest.fixture
def user_module(monkeypatch):
    """A module of the user's with a model, and a fuse that the test chooses."""
    module = types.ModuleType("user_models")
    module.make = plain_model
    module.number = lambda: 3
    module.value = 3
    monkeypatch.setitem(sys.modules, "user_models", module)

    def use(fuse):
        stub = types.ModuleType("mobilenet_ext.fusion")
        stub.fuse = fuse
        monkeypatch.setitem(sys.modules, "mobilenet_ext.fusion", stub)

    return use


def test_command_passes(user_module, capsys):
    user_module(fake_fuse)
    assert run_command("user_models:make", "--size", "32", "--batch", "2") == 0
    assert "user_models:make: 3 fused modules, within tolerance" in capsys.readouterr().out
    assert run_command("user_models:make", "--size", "32", "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert data["shape"] == [1, 3, 32, 32]
    assert data["ok"]


def test_command_fails_on_lost_precision_and_on_nothing_fused(user_module, capsys):
    user_module(lambda model: fake_fuse(model, precision=torch.float16))
    assert run_command("user_models:make", "--size", "32") == 1
    assert "OUT OF TOLERANCE" in capsys.readouterr().out
    user_module(lambda model: model)
    assert run_command("user_models:make", "--size", "32") == 1
    assert "nothing was fused" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("reference:v3", "no reference model 'v3'; allowed: v1, v2"),
        ("no_such_module_here:make", "cannot import module 'no_such_module_here'"),
        ("user_models:nothing", "module 'user_models' has no callable 'nothing'"),
        ("user_models:value", "module 'user_models' has no callable 'value'"),
        ("user_models:number", "user_models:number returned a int; allowed: a torch.nn.Module"),
        ("mobilenet_v22", "no model 'mobilenet_v22' (torchvision: "),
        ("timm:nonsense", "no model 'nonsense' in timm: "),
    ],
)
def test_command_explains_unknown_models(user_module, capsys, name, message):
    user_module(fake_fuse)
    assert run_command(name) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("option", [("--size", "0"), ("--batch", "-1"), ("--size", "big")])
def test_command_rejects_bad_numbers(option, capsys):
    with pytest.raises(SystemExit):
        run_command("reference:v2", *option)
    assert f"{option[1]!r} is not a positive integer" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["reference:v1", "reference:v2"])
def test_command_on_the_reference_models_with_the_real_kernels(name, capsys):
    assert run_command(name, "--size", "64", "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert data["fused"] > 10
    assert data["rows"][1]["path"] == ""


# Loading


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(loading.LoadError, match=r"no model 'x' in timm: timm cannot be imported .*pip install timm"):
        loading.load("timm:x")


def test_reference_model_is_random_but_reproducible_and_spreads_over_both_clamps():
    first, second = (loading.load("reference:v2", 32) for _ in range(2))
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    assert not any(module.training for module in first.modules())
    seen = []
    for module in first.modules():
        if isinstance(module, nn.ReLU6):
            module.register_forward_hook(lambda _, __, y: seen.append(((y == 0).any(), (y == 6).any())))
    first(torch.randn(2, 3, 64, 64))
    low, high = (sum(bool(pair[i]) for pair in seen) for i in (0, 1))
    assert low == len(seen)
    assert high > 0.9 * len(seen)


def test_loading_leaves_the_random_generator_alone():
    state = torch.get_rng_state()
    loading.load("reference:v1", 32)
    assert torch.equal(torch.get_rng_state(), state)
