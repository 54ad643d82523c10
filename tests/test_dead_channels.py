"""Hidden channels whose depthwise kernel is zero are removed, and the result stays."""

import copy

import pytest
import torch
from fused_cases import example, fused_path, make_block, randomize
from torch import nn

import mobilenet_ext
from mobilenet_ext import models


def with_dead(block, channels, value=0.0):
    with torch.no_grad():
        block.conv[1][0].weight[channels] = value
    return block


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("act", [nn.ReLU6, nn.ReLU, nn.Hardswish, nn.SiLU])
def test_zero_kernels_go_and_the_result_stays(stride, act):
    block = make_block(stride)
    block.conv[0][2], block.conv[1][2] = act(), act()
    block = with_dead(block, [0, 5, 63])
    before = copy.deepcopy(block.state_dict())
    fused = mobilenet_ext.fuse(block, drop_dead_channels=True)
    x = example(2, 16, 9)
    with torch.no_grad(), fused_path():
        y, expected = fused(x), block.double()(x.double())
    assert fused.conv[1][0].weight.shape == (61, 1, 3, 3)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=2e-6 * float(expected.abs().max()))
    with mobilenet_ext.disabled(), torch.no_grad():
        torch.testing.assert_close(fused(x), y, rtol=1e-4, atol=1e-4)
    ((path, dropped),) = mobilenet_ext.fusion_report(fused).dropped
    assert (path, dropped.channels, dropped.hidden, dropped.bound) == ("(model)", 3, 64, 0.0)
    assert "3 of 64 hidden channels dropped, error at most 0.0e+00" in str(mobilenet_ext.fusion_report(fused))
    assert all(torch.equal(value.float(), before[name].float()) for name, value in block.float().state_dict().items())


def test_tiny_kernels_go_within_the_bound_that_is_reported():
    block = with_dead(make_block(), [7], 1e-12)
    fused = mobilenet_ext.fuse(block, drop_dead_channels=True)
    ((_, dropped),) = mobilenet_ext.fusion_report(fused).dropped
    assert dropped.channels == 1
    assert 0 < dropped.bound < 1e-8
    double = mobilenet_ext.unfuse(fused).double()
    with torch.no_grad():
        moved = (double(example().double()) - block.double()(example().double())).abs().max()
    assert moved <= dropped.bound + 1e-6


def test_small_but_not_tiny_kernels_stay_and_so_do_living_blocks():
    for block in (with_dead(make_block(), [7], 1e-3), make_block()):
        fused = mobilenet_ext.fuse(block, drop_dead_channels=True)
        assert fused.conv[1][0].weight.shape[0] == 64
        assert mobilenet_ext.fusion_report(fused).dropped == ()


def test_unbounded_inputs_keep_their_tiny_kernels():
    block = make_block()
    block.conv[0][2] = nn.ReLU()
    fused = mobilenet_ext.fuse(with_dead(block, [7], 1e-12), drop_dead_channels=True)
    assert fused.conv[1][0].weight.shape[0] == 64


def test_a_whole_network_is_still_one_chain():
    network = randomize(models.MobileNetV2(num_classes=5, alpha=0.35)).eval()
    with torch.no_grad():
        for block in network.features:
            if isinstance(block, models.InvertedResidual) and len(block.conv) == 4:
                block.conv[1][0].weight[::7] = 0
    fused = mobilenet_ext.fuse(network, drop_dead_channels=True)
    x = torch.randn(1, 3, 64, 64)
    assert sum(p.numel() for p in fused.parameters()) < sum(p.numel() for p in network.parameters())
    with torch.no_grad(), fused_path():
        torch.testing.assert_close(fused(x), network(x), rtol=1e-3, atol=1e-3)
    assert len(mobilenet_ext.fusion_report(fused).dropped) > 10


def test_without_the_option_nothing_goes():
    fused = mobilenet_ext.fuse(with_dead(make_block(), [0]))
    assert fused.conv[1][0].weight.shape[0] == 64
