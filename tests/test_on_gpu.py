"""What only a GPU can show: every candidate of every item right on the device, dispatch, graphs, compiled models.

Nothing here runs in the project's own CI, which has no GPU; ``tools/gpu_suite.sh`` runs it on an owner's machine.
"""

import copy
import math

import pytest
import torch

from mobilenet_ext import fuse
from mobilenet_ext.backends import cuda
from mobilenet_ext.backends.gpu import packing, plans, runtime
from mobilenet_ext.models import MobileNetV2
from mobilenet_ext.spec import BlockSpec, ConvSpec
from mobilenet_ext.tolerance import check

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
BN = ("weight", "bn_weight", "bn_bias", "running_mean", "running_var")
DEVICE = "cuda"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def block(cin, hidden, cout, kernel=3, stride=1, residual=False):
    pads = (kernel // 2,) * 4
    return BlockSpec(
        ConvSpec(cin, hidden, activation="relu6", eps=1e-5, sources=BN),
        ConvSpec(hidden, hidden, (kernel,) * 2, (stride,) * 2, (1, 1), pads, True, "relu6", 1e-5, BN),
        ConvSpec(hidden, cout, eps=1e-5, sources=BN),
        residual=residual,
    )


ITEMS = {
    "small": (block(16, 64, 16, residual=True), (2, 9, 11)),
    "small stride": (block(24, 72, 32, stride=2), (1, 15, 7)),
    "7x7": (block(160, 960, 320), (1, 7, 7)),
    "28": (block(32, 192, 32, residual=True), (4, 28, 28)),
    "k5": (block(24, 72, 40, 5, 2), (2, 30, 30)),
}


def sources_of(item, dtype):
    tensors = []
    for _, spec in item.stages():
        fan, channels = math.prod(spec.weight_shape[1:]), spec.out_channels
        tensors += [
            (torch.randn(spec.weight_shape) / math.sqrt(fan)).to(dtype),
            torch.rand(channels) * 3 + 1,
            torch.randn(channels) + 1,
            torch.randn(channels) / 2,
            torch.rand(channels) + 0.5,
        ]
    return [tensor.cuda() for tensor in tensors]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ITEMS)
def test_every_candidate_is_right(name, dtype):
    item, (n, h, w) = ITEMS[name]
    x = (2 * torch.randn(n, item.in_channels, h, w)).cuda().to(dtype).to(memory_format=torch.channels_last)
    packed = packing.pack((item,), sources_of(item, dtype), dtype)[0]
    found = plans.candidates(packed, x, runtime.usable_backends(x))
    assert found
    for candidate in found:
        result = check(candidate.run(packed, x), (item,), x, packed.sources, dtype)
        assert result.ok, (candidate.name, result)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
def test_small_gradients_of_both_backends(dtype, kernel, stride):
    from mobilenet_ext.backends.triton import depthwise_backward
    from mobilenet_ext.backends.triton.common import Geometry

    channels, pad = 40, kernel // 2
    size = (13 + 2 * pad - kernel) // stride + 1
    x, dy = (torch.randn(2, channels, s, s).cuda().to(dtype) for s in (13, size))
    weight = torch.randn(channels, 1, kernel, kernel).cuda().to(dtype)
    shape = (2, channels, 13, 13)
    dx = torch.nn.grad.conv2d_input(shape, weight.double(), dy.double(), stride, pad, groups=channels)
    dw = torch.nn.grad.conv2d_weight(x.double(), weight.shape, dy.double(), stride, pad, groups=channels)
    packed = weight.squeeze(1).permute(1, 2, 0).contiguous()
    geometry = Geometry((kernel,) * 2, (stride,) * 2, (1, 1), pad, pad, size, size)
    results = {
        "triton": (
            depthwise_backward.backward_data(dy, packed, geometry, 13, 13),
            depthwise_backward.backward_weight(x, dy, geometry),
        )
    }
    if cuda.device_reason(0) is None:
        results["cuda"] = (
            cuda.depthwise_backward_data(dy, packed, stride, (pad, pad), (13, 13)),
            cuda.depthwise_backward_weight(x, dy, kernel, stride, (pad, pad)),
        )
    for actual_dx, actual_dw in results.values():
        torch.testing.assert_close(actual_dx.double(), dx, rtol=4 * torch.finfo(dtype).eps, atol=1e-2)
        torch.testing.assert_close(actual_dw.permute(2, 0, 1)[:, None].double(), dw, rtol=1e-4, atol=1e-3)


BLOCKS = 17  # of MobileNetV2; a kernel takes every one of them, PyTorch the stem, the head and the classifier


def network(size=64):
    """MobileNetV2 in fp32 whose features and logits are of the order of one: an error in them shows."""
    torch.manual_seed(0)
    model = MobileNetV2(num_classes=10).to(DEVICE)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.3)
    torch.nn.init.normal_(model.classifier[-1].weight, std=0.1)
    with torch.no_grad():
        model.train()(torch.randn(16, 3, size, size, device=DEVICE))
    return model.eval()


def assert_no_worse(ours, theirs, exact):
    """In the norm, beside PyTorch's own error; ``exact`` has to be something that can be missed."""
    assert exact.double().std() > 1e-3 * exact.double().abs().max() > 0
    error, allowed = ((t.double() - exact).norm() for t in (ours, theirs))
    assert error <= 2 * allowed + 1e-6 * exact.norm(), (error, allowed)


@pytest.fixture(params=["cuda", "triton"])
def only(request, monkeypatch):
    """A runtime in which this backend's kernels run unchecked, however slow, and PyTorch only what it has none for.

    Otherwise a network's test could be one of PyTorch alone.
    """
    reason = request.param == "cuda" and cuda.device_reason(0)
    if reason:
        pytest.skip(reason)
    monkeypatch.setenv("MOBILENET_EXT_GPU", "trust")
    fresh = runtime.Runtime()
    fresh.backends = lambda x: (request.param,)
    monkeypatch.setattr(runtime, "runtime", fresh)
    return fresh


def kernels(counters, kind=None):
    """How often a kernel, not PyTorch, ran: of forward items, or of one kind of gradient."""
    prefix = "" if kind is None else f"{kind} "
    names = [name for name in counters if name.startswith(prefix) and (kind is not None or " " not in name)]
    return sum(counters[name] for name in names if not name.endswith(plans.BASELINE))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_network(only, dtype):
    exact = network(224).double()
    x = torch.randn(4, 3, 224, 224, device=DEVICE, dtype=dtype)
    model = copy.deepcopy(exact).to(dtype)
    with torch.no_grad():
        assert_no_worse(fuse(model)(x), model(x), exact(x.double()))
    assert kernels(only.counters) == BLOCKS


def test_dispatch_finds_nothing_wrong_and_remembers(monkeypatch):
    """The default: each block is checked once, no kernel is wrong or fails, the next process takes the verdicts."""
    monkeypatch.delenv("MOBILENET_EXT_GPU", raising=False)
    fused, x = fuse(network().half()), torch.randn(4, 3, 64, 64, device=DEVICE).half()
    for again in (False, True):
        fresh = runtime.Runtime()
        monkeypatch.setattr(runtime, "runtime", fresh)
        if again:
            fresh.timer = lambda call: pytest.fail("a verdict on disk was not taken")
        with torch.no_grad():
            fused(x)
        verdicts = dict(fresh.verdicts())
        assert len(verdicts) >= 10
        assert {key: verdict.rejected for key, verdict in verdicts.items() if verdict.rejected} == {}


def test_a_captured_graph_sees_new_weights_after_a_refresh(only):
    from mobilenet_ext import refresh

    model = network(224).half()
    fused = fuse(model, inplace=True)
    x = torch.randn(1, 3, 224, 224, device=DEVICE, dtype=torch.float16)
    with torch.no_grad():
        for _ in range(3):
            fused(x)
        graph, before = torch.cuda.CUDAGraph(), kernels(only.counters)
        with torch.cuda.graph(graph):
            y = fused(x)
        assert kernels(only.counters) - before == BLOCKS  # in the graph, not only around it
        graph.replay()
        old = fused(x)
        torch.testing.assert_close(y, old)
        model.features[1].conv[0][0].weight.mul_(-1)
        refresh(fused)
        expected = fused(x)
        assert (expected - old).abs().max() > 0.1 * old.abs().max()
        graph.replay()
        torch.testing.assert_close(y, expected)


def test_compiled_without_graph_breaks(only):
    exact = network(224).double()
    model = copy.deepcopy(exact).half()
    x = torch.randn(2, 3, 224, 224, device=DEVICE, dtype=torch.float16)
    with torch.no_grad():
        assert_no_worse(torch.compile(fuse(model), fullgraph=True)(x), model(x), exact(x.double()))
    assert kernels(only.counters) >= BLOCKS


def test_autocast_and_gradients(only):
    model, results = network(), []
    exact = copy.deepcopy(model).double()
    image = torch.randn(2, 3, 64, 64, device=DEVICE)
    for net, cast in ((exact, False), (model, True), (fuse(model), True)):
        x = image.to(next(net.parameters()).dtype).requires_grad_()
        with torch.autocast("cuda", torch.float16, enabled=cast):
            y = net(x)
        assert y.dtype == (torch.float16 if cast else torch.float64)
        y.sum().backward()
        results.append((y.detach(), x.grad))
    for reference, theirs, ours in zip(*results, strict=True):
        assert_no_worse(ours, theirs, reference)
    assert kernels(only.counters) >= BLOCKS


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_of_a_network(only, dtype):
    """Frozen BatchNorm; against float64, beside PyTorch's own error."""
    exact, results = network().double(), []
    model = copy.deepcopy(exact).to(dtype)
    x = torch.randn(4, 3, 64, 64, device=DEVICE, dtype=dtype)
    for net in (exact, model, fuse(model)):
        net.zero_grad()
        net(x.to(next(net.parameters()).dtype)).sum().backward()
        results.append(torch.cat([p.grad.double().flatten() for p in net.parameters()]))
    reference, theirs, ours = results
    assert_no_worse(ours, theirs, reference)
    norms = 0 if only.backends(x) == ("cuda",) else 3 * BLOCKS - 1  # only Triton has that kernel
    expected = {"depthwise_input": BLOCKS, "depthwise_weight": BLOCKS, "batch_norm": norms}
    assert {kind: min(kernels(only.counters, kind), least) for kind, least in expected.items()} == expected
