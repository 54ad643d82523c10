"""Matching: every supported model equals its chain in float64, and everything else is refused with its reason."""

import copy
import importlib

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from mobilenet_ext import models
from mobilenet_ext.backends.aten import run_chain
from mobilenet_ext.loading import randomise
from mobilenet_ext.matchers import Match, Refusal, Source, match_module, match_runs, merge_stem, source_tensors
from mobilenet_ext.spec import BlockSpec, ConvSpec, source_names


def optional(name):
    """The module, or skip: torchvision raises RuntimeError on a torch that it was not built for."""
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError, OSError) as error:
        pytest.skip(f"{name} cannot be imported: {error}")


def conv(inputs, outputs, kernel=1, activation=nn.ReLU6, bias=False, norm=nn.BatchNorm2d, **options):
    options.setdefault("padding", kernel // 2)
    layers = [nn.Conv2d(inputs, outputs, kernel, bias=bias, **options)]
    layers += [norm(outputs)] if norm else []
    return layers + ([activation()] if activation else [])


def inverted_residual(inputs=8, hidden=24, outputs=8, kernel=3, activation=nn.ReLU6, **options):
    depthwise = conv(hidden, hidden, kernel, activation, groups=hidden, **options)
    return [*conv(inputs, hidden, activation=activation), *depthwise, *conv(hidden, outputs, activation=None)]


def prepared(module, x):
    torch.manual_seed(0)
    randomise(module, torch.randn(4, *x.shape[1:]))
    return module.eval().double()


def check(module, x, level=None, items=None):
    """The chain of ``module`` gives what ``module`` gives; returns the match."""
    prepared(module, x)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    match = match_module(module)
    assert isinstance(match, Match), match
    assert level in (None, match.level)
    assert items in (None, len(match.chain))
    check_paths(module, match)
    with torch.no_grad():
        expected, actual = module(x), run_chain(match.chain, x, source_tensors(module, match))
    assert expected.std() > 0.05
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    return match


def check_paths(module, match):
    names = source_names(match.chain)
    assert len(match.sources) == len(names)
    for name, source in zip(names, match.sources, strict=True):
        assert source.name == name.removeprefix("bn_") if name != "conv_bias" else source.name == "bias"
        assert (source.path in match.norms) == (name not in ("weight", "conv_bias"))
    paths = {name for name, _ in module.named_modules(remove_duplicate=False)}
    assert set(match.norms) | set(match.skipped) <= paths
    assert set(match.norms) <= set(match.skipped)
    assert all(path in match.skipped or path == "" for path in match.identities)


IMAGE = torch.randn(2, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
FEATURES = torch.randn(2, 8, 13, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


# Our own models


@pytest.mark.parametrize("alpha", [1.0, 0.5, 1.4])
@pytest.mark.parametrize("kind", ["MobileNetV1", "MobileNetV2"])
def test_reference_models(kind, alpha):
    match = check(getattr(models, kind)(num_classes=10, alpha=alpha), IMAGE, "model")
    assert list(dict(match.chain[0].stages())) == ["expand", "depthwise", "project"]
    assert match.chain[0].expand.kernel == (3, 3)
    assert match.chain[-2].pool


@pytest.mark.parametrize(("stride", "ratio", "outputs"), [(1, 6, 8), (2, 6, 8), (1, 1, 8), (1, 6, 16), (2, 1, 16)])
def test_reference_inverted_residual(stride, ratio, outputs):
    match = check(models.InvertedResidual(8, outputs, stride, ratio), FEATURES, "block", 1)
    assert match.chain[0].residual == (stride == 1 and outputs == 8)
    assert (match.chain[0].expand is None) == (ratio == 1)


def test_reference_units():
    check(models.DepthwiseSeparable(8, 16, 2), FEATURES, "block", 1)
    check(models.ConvBNReLU(8, 16, kernel_size=3, stride=2), FEATURES, "block", 1)


# Other libraries' models


@pytest.mark.parametrize("name", ["mobilenet_v2", "mnasnet0_5"])
def test_torchvision_models(name):
    check(getattr(optional("torchvision").models, name)(num_classes=10), IMAGE, "model")


def test_torchvision_mobilenet_v3_blocks():
    features = optional("torchvision").models.mobilenet_v3_small().features
    squeezed = check(features[1], torch.randn(1, 16, 14, 14, dtype=torch.float64), "block", 1).chain[0]
    assert squeezed.squeezed
    assert (squeezed.reduce.activation, squeezed.excite.activation) == ("relu", "hardsigmoid")
    plain = check(features[2], torch.randn(1, 16, 14, 14, dtype=torch.float64), "block", 1).chain[0]
    assert not plain.squeezed
    features[1].block[1].activation = nn.Tanh()
    assert "block.1.activation is the activation Tanh" in match_module(features[1]).reason


@pytest.mark.parametrize(
    "name",
    [
        "mobilenetv1_100",
        "mobilenetv1_100h",
        "mobilenetv2_050",
        "mobilenetv2_100",
        "mobilenetv2_110d",
        "efficientnet_lite0",
        "tf_efficientnet_lite0",
    ],
)
def test_timm_models(name):
    match = check(optional("timm").create_model(name, num_classes=10), IMAGE, "model")
    assert match.identities == ("",)
    dynamic = [spec for item in match.chain[:-1] for _, spec in item.stages() if spec.padding == "same"]
    assert bool(dynamic) == name.startswith("tf_")


@pytest.mark.parametrize(("size", "pool"), [((65, 47), "avg"), ((33, 64), "fast"), ((64, 64), "")])
def test_timm_sizes_and_pools(size, pool):
    classes = 10 if pool else 0
    model = optional("timm").create_model("tf_efficientnet_lite0", num_classes=classes, global_pool=pool)
    check(model, torch.randn(2, 3, *size, dtype=torch.float64), "model")


def test_timm_dropouts_are_named():
    model = optional("timm").create_model("mobilenetv2_050", drop_rate=0.2, drop_path_rate=0.1)
    match = check(model, IMAGE, "model")
    assert "" in match.identities
    assert "blocks.1.1.drop_path" in match.identities


def timm_block(kind, *args, **options):
    optional("timm")
    blocks = importlib.import_module("timm.models._efficientnet_blocks")
    return getattr(blocks, kind)(*args, **options)


@pytest.mark.parametrize("act", [nn.ReLU, nn.ReLU6, nn.Identity])
@pytest.mark.parametrize("pad", ["", "same"])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_timm_blocks(act, pad, kernel, stride):
    options = {"dw_kernel_size": kernel, "stride": stride, "pad_type": pad, "act_layer": act}
    check(timm_block("InvertedResidual", 8, 8, exp_ratio=3, **options), FEATURES, "block", 1)
    check(timm_block("InvertedResidual", 8, 8, exp_kernel_size=3, **options), FEATURES, "block", 1)
    check(timm_block("DepthwiseSeparableConv", 8, 8, **options), FEATURES, "block", 1)
    check(timm_block("DepthwiseSeparableConv", 8, 8, pw_act=True, **options), FEATURES, "block", 1)
    single = {"stride": stride, "pad_type": pad, "act_layer": act, "skip": True, "drop_path_rate": 0.1}
    match = check(timm_block("ConvBnAct", 8, 8, kernel, **single), FEATURES, "block", 1)
    assert match.chain[0].residual == (stride == 1)
    assert match.identities == (("drop_path",) if stride == 1 else ())


def test_timm_conv_norm_act():
    layers = optional("timm.layers")
    check(layers.ConvNormAct(8, 16, 3, stride=2, act_layer=nn.ReLU), FEATURES, "block", 1)


def test_timm_refusals():
    class Squeeze(nn.Module):
        def __init__(self, channels, act_layer=None, **_):
            super().__init__()

    blur = optional("timm.layers").BlurPool2d
    cases = [
        ("InvertedResidual", {"se_layer": Squeeze}, "se is a Squeeze; allowed: squeeze-and-excitation"),
        ("InvertedResidual", {"act_layer": nn.Mish}, "bn1.act is the activation Mish"),
        ("InvertedResidual", {"aa_layer": blur, "stride": 2}, "aa is a BlurPool2d: an anti-aliasing layer"),
        ("InvertedResidual", {"group_size": 2}, "conv_dw has groups=16 with 32 channels"),
        ("InvertedResidual", {"norm_layer": nn.GroupNorm}, "bn1 is a GroupNormAct; allowed: BatchNorm2d"),
        ("DepthwiseSeparableConv", {"s2d": 1}, "conv_s2d is a Conv2d"),
        ("EdgeResidual", {"group_size": 4}, "conv_exp has groups=8 with 32 channels"),
        ("EdgeResidual", {"se_layer": Squeeze}, "se follows a dense convolution; allowed: a depthwise one"),
    ]
    for kind, options, reason in cases:
        match = match_module(timm_block(kind, 32, 32, **options))
        assert reason in getattr(match, "reason", ""), (kind, options, match)
    model = optional("timm").create_model("mixnet_s")
    assert match_module(model).reason.endswith("is a MixedConv2d; allowed: torch.nn.Conv2d")
    model = optional("timm").create_model("mobilenetv2_100", global_pool="max")
    assert "global_pool is" in match_module(model).reason


# User code in a Sequential


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6, nn.Identity, None])
@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.SyncBatchNorm, lambda c: nn.BatchNorm2d(c, affine=False), None])
def test_sequential_of_one_convolution(bias, activation, norm):
    match = check(nn.Sequential(*conv(8, 12, 3, activation, bias, norm)), FEATURES, "block", 1)
    assert match.chain[0].kind == "conv"


@pytest.mark.parametrize(
    "options",
    [
        {"kernel": 3, "stride": 2},
        {"kernel": 3, "padding": "same", "dilation": 2},
        {"kernel": 4, "padding": "same"},
        {"kernel": 5, "padding": "valid"},
        {"kernel": 3, "padding": (2, 0), "stride": (1, 3)},
        {"kernel": 3, "groups": 8, "dilation": 2, "padding": 2},
    ],
)
def test_sequential_geometry(options):
    match = check(nn.Sequential(*conv(8, 8, **options)), FEATURES, "block", 1)
    spec = dict(match.chain[0].stages()).popitem()[1]
    assert not isinstance(spec.padding, str)


def test_flat_sequential_is_one_block():
    match = check(nn.Sequential(*inverted_residual()), FEATURES, "block", 1)
    assert not match.chain[0].residual
    assert match.sources[0] == Source("0", "weight")
    check(nn.Sequential(*inverted_residual(kernel=5, activation=nn.ReLU, stride=2)), FEATURES, "block", 1)


def test_a_single_channel_is_a_dense_convolution():
    network = nn.Sequential(*conv(8, 1), *conv(1, 1, 3), *conv(1, 4))
    (run,) = match_runs(prepared(network, FEATURES))
    assert (run.start, run.stop) == (0, 9)
    torch.testing.assert_close(
        run_chain(run.match.chain, FEATURES, source_tensors(network, run.match)), network(FEATURES)
    )


def test_whole_network_in_a_sequential():
    features = nn.Sequential(*conv(3, 16, 3, stride=2), nn.Sequential(*inverted_residual(16, 32, 24)), *conv(24, 40))
    network = nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(40, 7))
    match = check(network, IMAGE, "model", 4)
    assert match.identities == ("3",)
    network[1] = nn.AdaptiveAvgPool2d(2)
    network[4] = nn.Linear(160, 7)
    assert match_module(network) is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: m.__setitem__(1, nn.GroupNorm(4, 8)), "1 is a GroupNorm, which no fused kernel covers"),
        (
            lambda m: m.__setitem__(2, nn.Mish()),
            "2 is the activation Mish; supported: Identity, ReLU, ReLU6",
        ),
        (lambda m: m.__setitem__(1, nn.BatchNorm2d(8, track_running_stats=False)), "1 has no running statistics"),
        (lambda m: m.__setitem__(1, nn.BatchNorm2d(4)), r"1.weight has shape (4,) where (8,) belongs"),
        (lambda m: m.__setitem__(0, nn.Conv2d(8, 8, 3, groups=2)), "0 has groups=2 with 8 channels"),
        (lambda m: m.__setitem__(0, nn.Conv2d(4, 8, 3, groups=4)), "0 has channel multiplier 2; allowed: 1"),
        (lambda m: m.__setitem__(0, nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")), "padding_mode 'reflect'"),
        (lambda m: parametrizations.weight_norm(m[0]), "0 is parametrized"),
        (lambda m: prune.l1_unstructured(m[0], "weight", 0.3), "0.weight is computed from other tensors"),
        (lambda m: setattr(m[0], "forward", lambda x: x), "0 has a forward of its own on the instance"),
        (lambda m: setattr(m, "forward", lambda x: x), "Sequential overrides forward"),
        (lambda m: setattr(m[0], "weight", nn.Parameter(torch.zeros(6, 8, 3, 3))), "0.weight has shape (6, 8, 3, 3)"),
        (lambda m: m.__setitem__(0, nn.LazyConv2d(8, 3)), "0 is a LazyConv2d; allowed: torch.nn.Conv2d"),
        (lambda m: delattr(m[0], "stride"), "could not be read"),
    ],
)
def test_sequential_refusals(change, reason):
    network = nn.Sequential(*conv(8, 8, 3))
    change(network)
    match = match_module(network)
    assert isinstance(match, Refusal)
    assert reason in match.reason


def test_quantized_convolution_is_refused():
    network = nn.Sequential(*conv(8, 8, 3))
    network[0] = torch.ao.nn.qat.Conv2d(8, 8, 3, qconfig=torch.ao.quantization.get_default_qat_qconfig())
    assert match_module(network).reason == "0 is the quantized Conv2d; allowed: torch.nn.Conv2d"


def test_what_is_no_candidate():
    for module in (
        nn.ReLU(),
        nn.Linear(3, 4),
        nn.Conv2d(3, 4, 1),
        nn.Sequential(),
        nn.Sequential(nn.Linear(3, 4)),
        nn.ModuleList(),
    ):
        assert match_module(module) is None
        assert match_runs(module) == []


def test_subclasses_match_unless_they_override_forward():
    class Named(models.InvertedResidual):
        extra = 1

    class Changed(models.InvertedResidual):
        def forward(self, x):
            return 2 * super().forward(x)

    check(Named(8, 8, 1, 6), FEATURES, "block", 1)
    reason = match_module(Changed(8, 8, 1, 6)).reason
    assert reason.startswith("Changed overrides forward of mobilenet_ext.models")


def test_shortcut_that_does_not_fit_is_refused():
    block = models.InvertedResidual(8, 8, 1, 6)
    next(m for m in block.modules() if getattr(m, "groups", 1) > 1).padding = (0, 0)
    assert match_module(block).reason == "its shortcut joins a 64x96 input and a 62x94 output"


def test_a_model_with_another_classifier_is_refused_but_not_its_features():
    model = models.MobileNetV2(num_classes=10)
    model.classifier = nn.Sequential(nn.Linear(1280, 64), nn.Tanh(), nn.Linear(64, 10))
    assert match_module(model).reason.startswith("classifier.1 is the activation Tanh; supported: ")
    (run,) = match_runs(model.features)
    assert (run.start, run.stop) == (0, len(model.features))


# Runs


def test_runs_are_maximal_and_split_at_what_does_not_match():
    blocks = [nn.Sequential(*inverted_residual()) for _ in range(5)]
    network = nn.Sequential(
        nn.Dropout(0.1), *blocks[:2], nn.Identity(), blocks[2], nn.MaxPool2d(2), blocks[3], nn.Tanh(), *conv(8, 8, 3)
    )
    runs = match_runs(prepared(network, FEATURES))
    assert [(run.start, run.stop) for run in runs] == [(1, 5), (8, 11)]
    for run in runs:
        assert run.match.level == "run"
        check_paths(network, run.match)
        part = network[run.start : run.stop]
        tensors = source_tensors(network, run.match)
        torch.testing.assert_close(run_chain(run.match.chain, FEATURES, tensors), part(FEATURES))
    assert runs[0].match.skipped[0] == "1"
    assert "4.8" not in runs[0].match.skipped
    assert "4.7" in runs[0].match.skipped


def test_runs_inside_torchvision_and_timm():
    features = optional("torchvision").models.mobilenet_v2().features
    assert [(run.start, run.stop, len(run.match.chain)) for run in match_runs(features)] == [(0, 19, 18)]
    stages = optional("timm").create_model("mobilenetv2_100").blocks
    (run,) = match_runs(stages)
    assert (run.start, run.stop, len(run.match.chain)) == (0, 7, 17)
    assert run.match.sources[0] == Source("0.0.conv_dw", "weight")


def test_one_block_used_twice():
    block = nn.Sequential(*inverted_residual())
    network = prepared(nn.Sequential(block, block), FEATURES)
    (run,) = match_runs(network)
    assert (run.start, run.stop) == (0, 2)
    assert "1.0" in run.match.skipped
    torch.testing.assert_close(
        run_chain(run.match.chain, FEATURES, source_tensors(network, run.match)), network(FEATURES)
    )


def test_match_of_a_copy_is_equal():
    block = models.InvertedResidual(8, 8, 1, 6)
    assert match_module(copy.deepcopy(block)) == match_module(block)


# Merging


def test_merge_stem():
    stem = BlockSpec(expand=ConvSpec(3, 8, (3, 3), (2, 2), padding=(1, 1, 1, 1)))
    depthwise = ConvSpec(8, 8, (3, 3), padding=(1, 1, 1, 1), depthwise=True)
    separable = BlockSpec(depthwise=depthwise, project=ConvSpec(8, 16))
    (whole,) = merge_stem((stem, separable))
    assert whole == BlockSpec(expand=stem.expand, depthwise=depthwise, project=separable.project)
    assert merge_stem((stem, BlockSpec(depthwise=depthwise), BlockSpec(expand=ConvSpec(8, 16)))) == (whole,)
    with_shortcut = BlockSpec(depthwise=depthwise, project=ConvSpec(8, 8), residual=True)
    assert merge_stem((stem, with_shortcut)) == (stem, with_shortcut)
    strided = BlockSpec(expand=ConvSpec(8, 16, stride=(2, 2)))
    assert merge_stem((BlockSpec(depthwise=depthwise), strided)) == (BlockSpec(depthwise=depthwise), strided)
    assert merge_stem((whole, whole)) == (whole, whole)
