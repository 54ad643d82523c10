"""Cost: the counter against counts by hand, the law of depthwise-separable layers, the papers' tables."""

import pytest
import torch
from torch import nn

from mobilenet_ext import cost
from mobilenet_ext.models import MobileNetV1


def by_hand(layer, size):
    """Multiply-adds of one convolution with outputs of ``size``, written out."""
    taps = layer.kernel_size[0] * layer.kernel_size[1] * layer.in_channels // layer.groups
    return size[0] * size[1] * layer.out_channels * taps


@pytest.mark.parametrize("name", ["v1", "v2"])
def test_layers_against_hand_counts(name):
    model = cost.build(name, 0.5)
    result = cost.model_cost(model, 97)
    modules = dict(model.named_modules())
    assert len(result.layers) == {"v1": 28, "v2": 53}[name]
    for layer in result.layers:
        module = modules[layer.path]
        if layer.kind == "linear":
            assert layer.multiply_adds == module.in_features * module.out_features
        else:
            assert layer.multiply_adds == by_hand(module, layer.output_size), layer
    assert result.layers[0].output_size == (49, 49)
    assert result.multiply_adds == sum(layer.multiply_adds for layer in result.layers)
    norms = sum(
        p.numel() for m in modules.values() if isinstance(m, nn.BatchNorm2d) for p in m.parameters(recurse=False)
    )
    assert result.parameters == sum(layer.parameters for layer in result.layers) + norms


def test_kinds():
    layers = [nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 16, 1), nn.Conv2d(16, 16, 1, groups=4)]
    layers += [nn.Conv2d(16, 32, 3, groups=16), nn.Flatten(), nn.Linear(32, 5)]
    result = cost.model_cost(nn.Sequential(*layers), 7, in_channels=8)
    assert [layer.kind for layer in result.layers] == [
        "dense",
        "depthwise",
        "pointwise",
        "grouped",
        "grouped",
        "linear",
    ]
    assert result.layers[0].parameters == 8 * 8 * 9 + 8


def test_layers_that_do_not_run_or_run_twice():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.twice, self.never = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.twice(self.twice(x))

    result = cost.model_cost(Odd(), 4)
    assert [(layer.path, layer.multiply_adds) for layer in result.layers] == [("twice", 2 * 16 * 9)]
    assert result.parameters == 24


def test_a_lone_layer():
    (layer,) = cost.model_cost(nn.Conv2d(3, 4, 1), 5).layers
    assert (layer.path, layer.multiply_adds) == ("", 25 * 12)


def test_the_model_is_left_alone():
    model = MobileNetV1(num_classes=4, alpha=0.25)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cost.model_cost(model, 32)
    assert model.training
    assert all(p.device.type == "cpu" for p in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(("name", "pairs", "first"), [("v1", 13, "features.1"), ("v2", 17, "features.1.conv")])
def test_separable_layers_follow_the_law(name, pairs, first):
    found = cost.separable_costs(cost.model_cost(cost.build(name), 224))
    assert len(found) == pairs
    assert found[0].path == first
    for pair in found:
        assert pair.ratio == pytest.approx(1 / pair.out_channels + 1 / 9, rel=1e-12)
        assert pair.law == pytest.approx(pair.ratio, rel=1e-12)


def test_separable_layers_of_another_kernel_stride_and_size():
    depthwise = nn.Conv2d(6, 6, (3, 5), stride=(2, 1), padding=(0, 2), groups=6)
    block = nn.Sequential(nn.Sequential(depthwise, nn.BatchNorm2d(6)), nn.Conv2d(6, 10, 1), nn.Conv2d(10, 4, 1))
    (pair,) = cost.separable_costs(cost.model_cost(block, 11, in_channels=6))
    assert (pair.path, pair.output_size) == ("", (5, 11))
    assert pair.dense == 55 * 15 * 6 * 10
    assert pair.separable == 55 * (15 * 6 + 6 * 10)
    assert pair.law == pytest.approx(1 / 10 + 1 / 15)


def test_grid_of_v1_agrees_with_the_paper():
    rows = list(cost.grid("v1", cost.ALPHAS["v1"], cost.BETAS))
    assert [(row.alpha, row.input_size) for row in rows] == [
        (a, s) for a in (1, 0.75, 0.5, 0.25) for s in (224, 192, 160, 128)
    ]
    printed = [row for row in rows if row.paper_multiply_adds is not None]
    assert len(printed) == 7
    for row in printed:
        millions = row.multiply_adds / 1e6
        assert row.paper_multiply_adds in (round(millions), int(millions))
        assert row.paper_parameters == round(row.parameters / 1e6, 1)


def test_grid_of_v2_shows_where_the_paper_differs():
    rows = {(row.alpha, row.input_size): row for row in cost.grid("v2", (1.0, 1.4), (1.0, 0.5))}
    assert rows[1.0, 112].paper_multiply_adds is None
    assert (rows[1.0, 224].paper_multiply_adds, rows[1.0, 224].paper_parameters) == (300, 3.4)
    assert (rows[1.4, 224].paper_multiply_adds, rows[1.4, 224].paper_parameters) == (585, 6.9)
    assert rows[1.0, 224].multiply_adds == 300_774_272
    assert rows[1.4, 224].parameters == 6_108_776


def test_what_the_note_on_v2_says_of_weights_without_batch_norm():
    for alpha, millions in ((1.0, 3.47), (1.4, 6.06)):
        weights = sum(layer.parameters for layer in cost.model_cost(cost.build("v2", alpha), 32).layers)
        assert round(weights / 1e6, 2) == millions
        assert f"{millions} M" in cost.NOTES["v2"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cost.build("v3"), "model is 'v3'; allowed: v1, v2"),
        (
            lambda: list(cost.grid("v2", (1.0,), (0.0,))),
            r"beta is 0.0; allowed: values whose input size, round\(224 \* beta\).*",
        ),
        (lambda: list(cost.grid("v1", (-1.0,), (1.0,))), "alpha is -1.0; allowed: a finite number above 0"),
        (lambda: cost.model_cost(nn.Conv2d(3, 4, 1), 0), "input_size is 0; allowed: an integer of at least 1"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        call()
