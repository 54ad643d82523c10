"""Whole networks of the family: matched completely, equal to their chain, and what stays plain says why."""

import pytest
import torch
from fused_cases import kernels_run, randomize
from torch import nn

import mobilenet_ext
from mobilenet_ext.backends.aten import run_chain
from mobilenet_ext.matchers import Match, match_module, source_tensors
from mobilenet_ext.spec import BlockSpec

WHOLE = [
    "torchvision:mobilenet_v3_small",
    "torchvision:mobilenet_v3_large",
    "torchvision:efficientnet_b0",
    "torchvision:efficientnet_v2_s",
    "timm:mobilenetv3_small_050",
    "timm:mobilenetv3_large_100",
    "timm:tf_mobilenetv3_small_minimal_100",
    "timm:mobilenetv4_conv_small",
    "timm:mobilenetv4_conv_medium",
    "timm:mnasnet_small",
    "timm:semnasnet_050",
    "timm:efficientnet_b0",
    "timm:tf_efficientnet_b0",
    "timm:tf_efficientnetv2_b0",
    "timm:efficientnet_es",
    "timm:mobilenet_edgetpu_100",
    "timm:lcnet_050",
    "timm:fbnetc_100",
    "timm:hardcorenas_a",
    "timm:tinynet_e",
]


def create(name):
    library, _, rest = name.partition(":")
    if library == "torchvision":
        models = pytest.importorskip("torchvision").models
        return models.get_model(rest, weights=None, num_classes=10)
    return pytest.importorskip("timm").create_model(rest, num_classes=10)


def depthwise(model):
    return [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.groups == m.in_channels > 1]


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_network_is_one_chain(name):
    model = create(name)
    x = torch.randn(2, 3, 64, 64)
    randomize(model).eval()  # statistics near 1: others would amplify rounding from block to block
    match = match_module(model)
    assert isinstance(match, Match), match
    assert match.level == "model"
    found = [item for item in match.chain if isinstance(item, BlockSpec) and item.depthwise is not None]
    assert len(found) == len(depthwise(model))
    double = model.double()
    with torch.no_grad():
        expected = double(x.double())
        actual = run_chain(match.chain, x.double(), source_tensors(double, match))
    torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-8 * float(expected.abs().max()))
    fused = mobilenet_ext.fuse(model.float())
    before = kernels_run()
    with torch.inference_mode():
        y, plain = fused(x), model(x)
    assert kernels_run() - before >= len(match.chain) - 1
    # The second condition of docs/numerics.md; single blocks are held to both by test_family_ops.py.
    own = float((plain.double() - expected).norm())
    assert float((y.double() - expected).norm()) <= 2 * (1 + 2 / y.numel() ** 0.5) * own + 1e-6 * float(expected.norm())
    plain_again = mobilenet_ext.unfuse(fused)
    assert list(plain_again.state_dict()) == list(model.state_dict())
    assert type(plain_again) is type(model)


@pytest.mark.parametrize("name", ["lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large"])
def test_segmentation(name):
    segmentation = pytest.importorskip("torchvision").models.segmentation
    model = getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=5).eval()
    x = torch.randn(1, 3, 65, 72)
    fused = mobilenet_ext.fuse(model)
    before = kernels_run()
    with torch.inference_mode():
        y, expected = fused(x)["out"], model.double()(x.double())["out"]
    assert kernels_run() - before >= 15
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert unfused_depthwise(fused) == 0


def test_detection():
    detection = pytest.importorskip("torchvision").models.detection
    model = detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4).eval()
    fused = mobilenet_ext.fuse(model)
    images = [torch.rand(3, 97, 120)]
    before = kernels_run()
    with torch.inference_mode():
        found, expected = fused(images), model(images)
    assert kernels_run() - before >= 27
    assert unfused_depthwise(fused) == 0
    assert found[0]["boxes"].shape == expected[0]["boxes"].shape
    features = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        for a, b in zip(fused.backbone(features).values(), model.backbone(features).values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def unfused_depthwise(fused):
    """Depthwise convolutions in rows of the report that are not fused."""
    rows = [row for row in mobilenet_ext.fusion_report(fused).rows if not row.fused]
    return sum(len(depthwise(fused.get_submodule(row.path))) for row in rows if "+" not in row.path)


def test_squeeze_modules_of_another_kind_are_left_alone():
    efficientnet = create("torchvision:efficientnet_b0").eval()

    class Odd(type(efficientnet.features[1][0].block[1])):
        def forward(self, x):
            return super().forward(x) + 1

    efficientnet.features[1][0].block[1].__class__ = Odd
    reason = match_module(efficientnet.features[1][0]).reason
    assert "Odd overrides forward of torchvision.ops.misc.SqueezeExcitation" in reason
    x = torch.randn(1, 3, 64, 64)
    fused = mobilenet_ext.fuse(efficientnet)
    with torch.inference_mode():
        torch.testing.assert_close(fused(x), efficientnet(x), rtol=1e-3, atol=1e-4)


def test_a_hook_inside_squeeze_and_excitation_is_respected():
    model = create("torchvision:mobilenet_v3_small").eval()
    fused = mobilenet_ext.fuse(model)
    seen = []
    fused.features[1].block[1].fc1.register_forward_hook(lambda *_: seen.append(1))
    with torch.inference_mode():
        fused(torch.randn(1, 3, 64, 64))
    assert seen == [1]


def test_a_changed_slope_is_seen():
    block = nn.Sequential(nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8), nn.LeakyReLU(0.1)).eval()
    fused = mobilenet_ext.fuse(block)
    x = torch.randn(1, 4, 5, 5)
    with torch.inference_mode():
        torch.testing.assert_close(fused(x), block(x))
        fused[2].negative_slope = 0.5
        block[2].negative_slope = 0.5
        torch.testing.assert_close(fused(x), block(x))
