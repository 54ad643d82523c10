"""Fifty steps of training: the loss of the fused model stays by that of the plain one, seed by seed."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mobilenet_ext
from mobilenet_ext._library import native
from mobilenet_ext.models import ConvBNReLU, InvertedResidual

STEPS, BATCH, SIZE = 50, 16, 32


def _data() -> tuple[torch.Tensor, torch.Tensor]:
    datasets = pytest.importorskip("sklearn.datasets", reason="needs scikit-learn")
    digits = datasets.load_digits()
    images = torch.tensor(digits.images[: 10 * BATCH], dtype=torch.float32)[:, None] / 8 - 1
    images = F.interpolate(images, size=(SIZE, SIZE), mode="bilinear").expand(-1, 3, -1, -1)
    return images.contiguous(memory_format=torch.channels_last), torch.tensor(digits.target[: 10 * BATCH])


def _curve(seed: int, fused: bool, frozen: bool) -> torch.Tensor:
    torch.manual_seed(seed)
    images, labels = _data()
    model = nn.Sequential(
        ConvBNReLU(3, 16, stride=2),
        InvertedResidual(16, 16, 1, expand_ratio=6),
        InvertedResidual(16, 24, 2, expand_ratio=6),
        InvertedResidual(24, 24, 1, expand_ratio=6),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 10),
    ).to(memory_format=torch.channels_last)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the average: statistics that frozen BatchNorm can live with
    with torch.no_grad():
        model.train()(images)
    for norm in norms:
        norm.momentum = 0.1
    if fused:
        model = mobilenet_ext.fuse(model)
    model.train()
    if frozen:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
    optimizer = torch.optim.SGD(model.parameters(), 0.0003 if frozen else 0.003, momentum=0.9)
    losses = []
    for step in range(STEPS):
        at = slice(step % 10 * BATCH, (step % 10 + 1) * BATCH)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images[at]), labels[at])
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return torch.tensor(losses)


@pytest.mark.parametrize("frozen", [False, True], ids=["batch statistics", "frozen"])
def test_the_loss_curve_is_within_the_spread_of_the_seeds(frozen: bool):
    plain = torch.stack([_curve(seed, False, frozen) for seed in range(3)])
    native.reset_counters()
    fused = torch.stack([_curve(seed, True, frozen) for seed in range(3)])
    assert any(name.startswith("depthwise_backward.") for name in native.counters())
    spread = plain.amax(0) - plain.amin(0)
    # Rounding grows from step to step, as between any two orders of sums: a value next to a kink of ReLU6 takes the
    # other side. The first step has not diverged yet.
    difference = (fused - plain).abs().amax(0)
    assert difference[0] <= 1e-5
    assert difference.mean() <= spread.mean() / 2
    for losses in (plain, fused):
        assert losses[:, -10:].mean() < losses[:, :10].mean()  # it learns at all
