"""The reference models: structure, exact counts, exchange with torchvision, initialisation, input errors."""

import importlib
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mobilenet_ext.cost import model_cost
from mobilenet_ext.models import ConvBNReLU, DepthwiseSeparable, InvertedResidual, MobileNetV1, MobileNetV2
from mobilenet_ext.models.blocks import _make_divisible


def on_meta(model_class, **arguments):
    with torch.device("meta"):
        return model_class(**arguments)


def torchvision_v2(**arguments):
    try:
        models = importlib.import_module("torchvision.models")
    except (ImportError, RuntimeError, OSError) as error:  # RuntimeError: torchvision of another torch
        pytest.skip(f"torchvision cannot be imported: {error}")
    return models.mobilenet_v2(**arguments)


def spread(model, seed=0):
    """BatchNorm parameters and statistics away from the identity, so that leaving one out shows."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            shape = (module.num_features,)
            module.weight.data = 0.5 + torch.rand(shape, generator=generator)
            module.bias.data = torch.randn(shape, generator=generator)
            module.running_mean.copy_(torch.randn(shape, generator=generator) * 0.1)
            module.running_var.copy_(0.5 + torch.rand(shape, generator=generator))
    return model.eval()


# Counts


@pytest.mark.parametrize(
    ("alpha", "parameters", "multiply_adds"), [(1.0, 3_504_872, 300_774_272), (1.4, 6_108_776, 582_195_824)]
)
def test_v2_counts(alpha, parameters, multiply_adds):
    cost = model_cost(on_meta(MobileNetV2, alpha=alpha), 224)
    assert (cost.parameters, cost.multiply_adds) == (parameters, multiply_adds)


@pytest.mark.parametrize(
    ("alpha", "size", "multiply_adds", "printed"),
    [
        (1.0, 224, 568_740_352, 569),
        (1.0, 192, 418_121_728, 418),
        (1.0, 160, 290_675_200, 290),
        (1.0, 128, 186_400_768, 186),
        (0.75, 224, 325_400_448, 325),
        (0.5, 224, 149_497_088, 149),
        (0.25, 224, 41_030_272, 41),
    ],
)
def test_v1_multiply_adds(alpha, size, multiply_adds, printed):
    model = on_meta(MobileNetV1, alpha=alpha, beta=size / 224)
    assert model.input_size == size
    assert model_cost(model, size).multiply_adds == multiply_adds
    assert abs(multiply_adds / 1e6 - printed) < 0.7  # the paper cuts 290.68 off to 290


@pytest.mark.parametrize(
    ("alpha", "parameters", "printed"),
    [(1.0, 4_231_976, 4.2), (0.75, 2_585_560, 2.6), (0.5, 1_331_592, 1.3), (0.25, 470_072, 0.5)],
)
def test_v1_parameters(alpha, parameters, printed):
    assert sum(p.numel() for p in on_meta(MobileNetV1, alpha=alpha).parameters()) == parameters
    assert round(parameters / 1e6, 1) == printed


# Structure


def test_v1_stages():
    model = on_meta(MobileNetV1).eval()
    x, seen = torch.empty(1, 3, 224, 224, device="meta"), []
    for layer in model.features:
        x = layer(x)
        seen.append((x.shape[1], x.shape[2]))
    paper = [(32, 112), (64, 112), (128, 56), (128, 56), (256, 28), (256, 28), *[(512, 14)] * 6, (1024, 7), (1024, 7)]
    assert seen == paper


@pytest.mark.parametrize(("cls", "sizes"), [(MobileNetV1, (96, 33)), (MobileNetV2, (96, 33))])
def test_models_take_any_size_and_batch(cls, sizes):
    model = spread(cls(num_classes=7, alpha=0.25))
    with torch.no_grad():
        for size in sizes:
            assert model(torch.randn(2, 3, size, size + 5)).shape == (2, 7)
        assert model(torch.empty(0, 3, 32, 32)).shape == (0, 7)


@pytest.mark.parametrize(
    ("channels", "divisor", "expected"),
    [
        (32, 8, 32),
        (33.6, 8, 32),
        (22.4, 8, 24),
        (44.8, 8, 48),
        (3, 8, 8),
        (11.2, 8, 16),
        (12, 8, 16),
        (10, 16, 16),
        (7.4, 1, 7),
    ],
)
def test_make_divisible(channels, divisor, expected):
    assert _make_divisible(channels, divisor) == expected


def test_make_divisible_is_never_more_than_ten_percent_below():
    below = [channels for channels in range(1, 2000) if _make_divisible(channels) < 0.9 * channels]
    far = [channels for channels in range(1, 2000) if abs(_make_divisible(channels) - channels) > 8]
    assert below == far == []


def conv_bn(x, conv, norm, **options):
    """Conv2d and BatchNorm2d from their definitions."""
    y = F.conv2d(x, conv.weight, **options)
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return (y - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]


@pytest.mark.parametrize(("stride", "ratio", "out"), [(1, 6, 8), (2, 6, 8), (1, 6, 12), (1, 1, 8), (2, 1, 12)])
def test_inverted_residual_computes_its_definition(stride, ratio, out):
    block = spread(InvertedResidual(8, out, stride, ratio)).double()
    x = 3 * torch.randn(2, 8, 9, 11, dtype=torch.float64)
    convs = [m for m in block.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in block.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(convs) == (2 if ratio == 1 else 3)
    y = x if ratio == 1 else conv_bn(x, convs[0], norms[0]).clamp(0, 6)
    y = conv_bn(y, convs[-2], norms[-2], stride=stride, padding=1, groups=8 * ratio).clamp(0, 6)
    y = conv_bn(y, convs[-1], norms[-1])
    y = y + x if stride == 1 and out == 8 else y
    torch.testing.assert_close(block(x), y)
    assert y.shape == (2, out, math.ceil(9 / stride), math.ceil(11 / stride))


@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_separable_computes_its_definition(stride):
    block = spread(DepthwiseSeparable(8, 12, stride)).double()
    x = 3 * torch.randn(2, 8, 9, 11, dtype=torch.float64)
    (first, norm, _), (second, norm2, _) = block.depthwise, block.pointwise
    y = conv_bn(x, first, norm, stride=stride, padding=1, groups=8).clamp(0, 6)
    torch.testing.assert_close(block(x), conv_bn(y, second, norm2).clamp(0, 6))


def test_conv_bn_relu_padding_follows_the_kernel():
    for kernel in (1, 3, 5):
        assert ConvBNReLU(3, 8, kernel)(torch.randn(2, 3, 10, 9)).shape == (2, 8, 10, 9)


# torchvision


@pytest.mark.parametrize("alpha", [1.0, 1.4])
def test_v2_exchanges_checkpoints_with_torchvision(alpha):
    ours, theirs = spread(MobileNetV2(alpha=alpha), 1), spread(torchvision_v2(width_mult=alpha), 2)
    x = torch.randn(1, 3, 64, 64)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    with torch.no_grad():
        before, wanted = ours(x), theirs(x)
        assert not torch.allclose(before, wanted)
        trained = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
        ours.load_state_dict(theirs.state_dict(), strict=True)
        torch.testing.assert_close(ours(x), wanted, rtol=0, atol=0)
        theirs.load_state_dict(trained, strict=True)
        torch.testing.assert_close(theirs(x), before, rtol=0, atol=0)


def test_v2_last_layer_scales_below_one():
    assert on_meta(MobileNetV2, alpha=0.5).classifier[1].in_features == 640
    assert on_meta(MobileNetV2, alpha=0.35, round_nearest=16).features[0][0].out_channels == 16


# Initialisation


@pytest.mark.parametrize("cls", [MobileNetV1, MobileNetV2])
def test_initialisation(cls):
    torch.manual_seed(0)
    model = cls(num_classes=500, alpha=0.5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert torch.all(module.weight == 1)
            assert torch.all(module.bias == 0)
        if isinstance(module, nn.Linear):
            assert torch.all(module.bias == 0)
            assert module.weight.std().item() == pytest.approx(0.01, rel=0.02)
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 20_000:
            fan_out = module.out_channels * math.prod(module.kernel_size)
            assert module.bias is None
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.03)


# Errors


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MobileNetV1(alpha=0), "alpha is 0; allowed: a finite number above 0"),
        (lambda: MobileNetV1(alpha=math.nan), "alpha is nan; allowed: a finite number above 0"),
        (lambda: MobileNetV1(beta=-0.5), "beta is -0.5; allowed: a finite number above 0"),
        (
            lambda: MobileNetV1(beta=0.001),
            r"beta is 0.001; allowed: values whose input size, round\(224 \* beta\), is at least 1",
        ),
        (lambda: MobileNetV1(num_classes=0), "num_classes is 0; allowed: an integer of at least 1"),
        (lambda: MobileNetV2(alpha=math.inf), "alpha is inf; allowed: a finite number above 0"),
        (lambda: MobileNetV2(alpha="1"), "alpha is '1'; allowed: a finite number above 0"),
        (lambda: MobileNetV2(num_classes=-3), "num_classes is -3; allowed: an integer of at least 1"),
        (lambda: MobileNetV2(num_classes=10.0), "num_classes is 10.0; allowed: an integer of at least 1"),
        (lambda: MobileNetV2(round_nearest=0), "round_nearest is 0; allowed: an integer of at least 1"),
        (lambda: InvertedResidual(8, 8, 3, 6), "stride is 3; allowed: 1 or 2"),
        (lambda: InvertedResidual(8, 8, 1, 0), "expand_ratio is 0; allowed: an integer of at least 1"),
        (lambda: InvertedResidual(0, 8, 1, 6), "in_channel is 0; allowed: an integer of at least 1"),
        (lambda: DepthwiseSeparable(8, 16, 0), "stride is 0; allowed: 1 or 2"),
        (lambda: DepthwiseSeparable(8, -1), "out_channel is -1; allowed: an integer of at least 1"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        make()
