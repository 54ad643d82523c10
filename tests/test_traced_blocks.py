"""A user's own blocks, matched by the structure that torch.fx finds."""

import pickle

import pytest
import torch
import torch.nn.functional as F
from fused_cases import assert_close, fused_path, randomize
from torch import nn

import mobilenet_ext
from mobilenet_ext.matchers import Match, Refusal, match_module


class Unit(nn.Module):
    """Convolution, BatchNorm, activation, as people write it."""

    def __init__(self, inputs, outputs, kernel=1, stride=1, groups=1, activation=None):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.act = activation

    def forward(self, x):
        x = self.bn(self.conv(x))
        return x if self.act is None else self.act(x)


class Squeeze(nn.Module):
    def __init__(self, channels, pool):
        super().__init__()
        self.down, self.up, self.pool = nn.Conv2d(channels, 3, 1), nn.Conv2d(3, channels, 1), pool
        self.average = nn.AdaptiveAvgPool2d(1)

    def forward(self, x):
        pooled = {
            "module": lambda: self.average(x),
            "function": lambda: F.adaptive_avg_pool2d(x, 1),
            "method": lambda: x.mean((2, 3), keepdim=True),
            "torch": lambda: torch.mean(x, dim=[-2, -1], keepdim=True),
        }[self.pool]()
        return x * torch.sigmoid(self.up(F.relu(self.down(pooled))))


class Block(nn.Module):
    """An inverted residual with everything that a user may put in it."""

    def __init__(self, channels=8, outputs=8, stride=1, act=nn.Hardswish, pool=None, use_skip=True):
        super().__init__()
        hidden = 3 * channels
        self.expand = Unit(channels, hidden, activation=act())
        self.depthwise = Unit(hidden, hidden, 3, stride, hidden, act())
        self.squeeze = Squeeze(hidden, pool) if pool else None
        self.project = Unit(hidden, outputs)
        self.dropout = nn.Dropout(0.1)
        self.use_skip = use_skip and stride == 1 and channels == outputs

    def forward(self, x):
        y = self.depthwise(self.expand(x))
        if self.squeeze is not None:
            y = self.squeeze(y)
        y = self.dropout(self.project(y))
        return x + y if self.use_skip else y


class Functional(nn.Module):
    """Flat, with functions for activations, and a bias instead of a norm."""

    def __init__(self):
        super().__init__()
        self.depthwise = nn.Conv2d(8, 8, 5, 2, 2, groups=8)
        self.pointwise = nn.Conv2d(8, 16, 1)

    def forward(self, x):
        return F.relu6(self.pointwise(F.silu(self.depthwise(x))))


def ready(block):
    return randomize(block).eval()


EXAMPLE = 2 * torch.randn(2, 8, 11, 9, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    "block",
    [
        Block(),
        Block(outputs=12),
        Block(stride=2),
        Block(act=nn.ReLU6),
        Block(act=nn.SiLU, pool="module"),
        Block(pool="function"),
        Block(pool="method"),
        Block(pool="torch", stride=2),
        Functional(),
    ],
)
def test_blocks_are_fused_and_right(block):
    block = ready(block)
    match = match_module(block)
    assert isinstance(match, Match), match
    assert (match.level, len(match.chain)) == ("block", 1)
    fused = mobilenet_ext.fuse(block)
    with torch.no_grad(), fused_path():
        assert_close(fused(EXAMPLE), block(EXAMPLE))
    assert mobilenet_ext.verify(block, fused, EXAMPLE).ok
    assert list(fused.state_dict()) == list(block.state_dict())
    assert type(mobilenet_ext.unfuse(fused)) is type(block)


def test_a_run_of_own_blocks_is_one_chain():
    network = nn.Sequential(*(ready(Block(pool="method")) for _ in range(3)))
    fused = mobilenet_ext.fuse(network)
    assert len(mobilenet_ext.fusion_report(fused, EXAMPLE).rows) == 3
    with torch.no_grad(), fused_path():
        assert_close(fused(EXAMPLE), network(EXAMPLE))


def test_settings_that_forward_may_read_are_compared_at_every_call():
    block = ready(Block())
    fused = mobilenet_ext.fuse(block)
    with torch.no_grad():
        fused(EXAMPLE)
        fused.use_skip = block.use_skip = False
        with fused_path(False):
            torch.testing.assert_close(fused(EXAMPLE), block(EXAMPLE))
        fused.use_skip = block.use_skip = True
        with fused_path():
            assert_close(fused(EXAMPLE), block(EXAMPLE))


def test_training_runs_the_own_forward():
    fused = mobilenet_ext.fuse(ready(Block())).train()
    before = fused.expand.bn.num_batches_tracked.clone()
    with fused_path(False):
        fused(EXAMPLE)
    assert fused.expand.bn.num_batches_tracked == before + 1


def test_pickle_and_compile():
    block = ready(Block(pool="module"))
    fused = pickle.loads(pickle.dumps(mobilenet_ext.fuse(block)))
    compiled = torch.compile(fused, fullgraph=True)
    with torch.no_grad(), fused_path():
        assert_close(compiled(EXAMPLE), block(EXAMPLE))


class TwoInputs(Block):
    def forward(self, x, y):
        return super().forward(x) + y


class Branching(Block):
    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else x


class Remembering(Block):
    def forward(self, x):
        self.last = x
        return super().forward(x)


class Twice(Block):
    def forward(self, x):
        return 2 * super().forward(x)


class Branches(Block):
    def forward(self, x):
        y = self.expand(x)
        return self.project(self.depthwise(y) + y)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (TwoInputs, "takes or returns something other than one tensor"),
        (Branching, "torch.fx cannot trace its forward (TraceError"),
        (Remembering, "its forward sets attributes of its modules"),
        (Twice, "its forward is no straight line of layers"),
        (Branches, "its forward is no straight line of layers"),
    ],
)
def test_what_is_not_understood_is_left_alone(kind, reason):
    block = ready(kind())
    state = dict(vars(block))
    match = match_module(block)
    assert isinstance(match, Refusal), match
    assert reason in match.reason
    assert vars(block) == state
    fused = mobilenet_ext.fuse(block)
    arguments = (EXAMPLE, EXAMPLE) if kind is TwoInputs else (EXAMPLE,)
    with torch.no_grad():
        torch.testing.assert_close(fused(*arguments), block(*arguments))


def test_what_is_no_block_is_no_candidate():
    class Dense(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

        def forward(self, x):
            raise AssertionError("must not be run")

    assert match_module(Dense()) is None
