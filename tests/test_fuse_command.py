"""``mobilenet-ext fuse``, and models from files for every command."""

import json

import pytest
import torch
from fused_cases import make_block, make_run

import mobilenet_ext
from mobilenet_ext import cli
from mobilenet_ext.loading import LoadError, load


def test_json_and_markdown(capsys):
    assert cli.main(["fuse", "reference:v2", "--size", "32", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["counts"]["PyTorch"] == 0
    assert cli.main(["fuse", "reference:v2", "--size", "32", "--markdown"]) == 0
    assert capsys.readouterr().out.startswith("| path | class | fused |")


def test_export_and_its_package(tmp_path, capsys):
    file = tmp_path / "fused.pt2"
    assert cli.main(["fuse", "reference:v1", "--size", "32", "--export", str(file)]) == 0
    module = load(str(file))
    assert module(torch.randn(1, 3, 32, 32)).shape == (1, 1000)
    assert cli.main(["fuse", str(file), "--size", "32"]) == 1


def test_weights_are_read_as_tensors_only(tmp_path):
    state = load("reference:v1", 32, seed=5).state_dict()
    file = tmp_path / "weights.pth"
    torch.save({"state_dict": state}, file)
    model = load("reference:v1", 32, weights=str(file))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    torch.save(make_run(), file)
    with pytest.raises(LoadError, match="holds more than tensors"):
        load("reference:v1", 32, weights=str(file))
    torch.save({"conv": torch.ones(1)}, file)
    with pytest.raises(LoadError, match="Missing key"):
        load("reference:v1", 32, weights=str(file))


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (None, {}, "there is no file"),
        ("block", {}, "--allow-pickle"),
        ({"a": 1}, {"allow_pickle": True}, "holds a dict; allowed: a torch.nn.Module"),
    ],
)
def test_files_that_are_refused(tmp_path, content, options, message):
    file = tmp_path / "model.pt"
    if content is not None:
        torch.save(make_block() if content == "block" else content, file)
    with pytest.raises(LoadError, match=message):
        load(str(file), **options)


def test_a_damaged_package(tmp_path):
    file = tmp_path / "model.pt2"
    file.write_bytes(b"nothing")
    with pytest.raises(LoadError, match=r"is no torch\.export package"):
        load(str(file))


def test_dead_channels_from_the_command_line(tmp_path, capsys):
    block = make_run()
    with torch.no_grad():
        block[0].conv[1][0].weight[3] = 0
    file = tmp_path / "model.pt"
    torch.save(block, file)
    arguments = ["fuse", str(file), "--allow-pickle", "--size", "16", "--json", "--drop-dead-channels"]
    assert cli.main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["dropped"] == {"0": {"channels": 1, "hidden": 64, "bound": 0.0}}


def test_markdown_of_a_report():
    text = mobilenet_ext.fusion_report(mobilenet_ext.fuse(make_block())).to_markdown()
    assert text.splitlines()[1] == "|---|---|---|---|---|---|"
    assert "- 1 as whole blocks" in text
