"""What only a GPU can show: every candidate of every item right on the device, dispatch, graphs, compiled models.

Nothing here runs in the project's own CI, which has no GPU; ``tools/gpu_suite.sh`` runs it on an owner's machine.
"""

import math

import pytest
import torch

from mobilenet_ext import fuse
from mobilenet_ext.backends.gpu import packing, plans, runtime
from mobilenet_ext.models import MobileNetV2
from mobilenet_ext.spec import BlockSpec, ConvSpec
from mobilenet_ext.tolerance import check

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
BN = ("weight", "bn_weight", "bn_bias", "running_mean", "running_var")
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
    from mobilenet_ext.backends import cuda
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


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_network(dtype):
    model = MobileNetV2().cuda().to(dtype).eval()
    fused = fuse(model)
    x = torch.randn(4, 3, 224, 224, device="cuda", dtype=dtype)
    with torch.no_grad():
        exact = MobileNetV2().cuda().double().eval()
        exact.load_state_dict(model.state_dict())
        reference = exact(x.double())
        ours, theirs = (fused(x).double() - reference).norm(), (model(x).double() - reference).norm()
    assert ours <= 2 * theirs + 1e-9
    assert sum(runtime.runtime.counters.values()) > 0


def test_a_captured_graph_sees_new_weights_after_a_refresh():
    from mobilenet_ext import refresh

    model = MobileNetV2().cuda().half().eval()
    fused = fuse(model, inplace=True)
    x = torch.randn(1, 3, 224, 224, device="cuda", dtype=torch.float16)
    with torch.no_grad():
        for _ in range(3):
            fused(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = fused(x)
        graph.replay()
        torch.testing.assert_close(y, fused(x))
        model.features[1].conv[0][0].weight.mul_(1.5)
        refresh(fused)
        expected = fused(x)
        graph.replay()
        torch.testing.assert_close(y, expected)


def test_compiled_without_graph_breaks():
    fused = fuse(MobileNetV2().cuda().half().eval())
    x = torch.randn(2, 3, 224, 224, device="cuda", dtype=torch.float16)
    with torch.no_grad():
        expected = fused(x)
        torch.testing.assert_close(torch.compile(fused, fullgraph=True)(x), expected, rtol=1e-2, atol=1e-2)


def test_autocast_and_gradients():
    fused = fuse(MobileNetV2(num_classes=10).cuda().eval())
    x = torch.randn(2, 3, 64, 64, device="cuda", requires_grad=True)
    with torch.autocast("cuda", torch.float16):
        y = fused(x)
    assert y.dtype == torch.float16
    y.float().sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_of_a_network(dtype):
    """Frozen BatchNorm; against float64, beside PyTorch's own error."""
    model = MobileNetV2(num_classes=10).to(dtype).cuda().eval()
    exact = MobileNetV2(num_classes=10).cuda().double().eval()
    exact.load_state_dict(model.state_dict())
    x, results = torch.randn(4, 3, 64, 64, device="cuda", dtype=dtype), []
    for network in (exact, model, fuse(model)):
        network.zero_grad()
        network(x.to(next(network.parameters()).dtype)).sum().backward()
        results.append(torch.cat([p.grad.double().flatten() for p in network.parameters()]))
    reference, theirs, ours = results
    assert (ours - reference).norm() <= 2 * (theirs - reference).norm() + 1e-6 * reference.norm()
    kinds = {name.partition(" ")[0] for name in runtime.runtime.counters if " " in name}
    assert kinds == {"depthwise_input", "depthwise_weight", "batch_norm"}
