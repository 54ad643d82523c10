"""Which kernel makes each gradient of a block on a GPU: decided with fakes on the CPU, so that no GPU is needed."""

import copy
from importlib.util import find_spec

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from mobilenet_ext import autograd
from mobilenet_ext.backends import cuda
from mobilenet_ext.backends.gpu import gradients
from mobilenet_ext.backends.gpu import runtime as runtime_module
from mobilenet_ext.backends.gpu.gradients import BatchNormJob, DepthwiseGeometry, DepthwiseJob
from mobilenet_ext.backends.gpu.plans import Candidate
from mobilenet_ext.backends.gpu.runtime import Runtime
from mobilenet_ext.backends.gpu.trial import try_out_gradient
from mobilenet_ext.fusion import fuse
from mobilenet_ext.models import InvertedResidual
from mobilenet_ext.spec import ConvSpec

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")


class Fakes:
    """Candidates by kind of gradient with known times: right, wrong or raising by name; PyTorch takes a second."""

    def __init__(self, **seconds):
        self.seconds, self.calls = seconds, []

    def candidates(self, job, backends):
        names = self.seconds.get(job.kind, {})
        return [Candidate(name, self._run(name)) for name in names if name.split(".")[0] in backends]

    def _run(self, name):
        def run(job):
            self.calls.append((job.kind, name))
            if "raises" in name:
                raise RuntimeError("no code for this architecture")
            results = job.baseline()
            return tuple(y + 0.01 * y.abs().max() for y in results) if "wrong" in name else results

        return run

    def timer(self, call):
        before = len(self.calls)
        call()
        if len(self.calls) == before:
            return 1.0
        kind, name = self.calls[-1]
        return self.seconds[kind][name]


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("MOBILENET_EXT_GPU", raising=False)


@pytest.fixture
def as_on_gpu(monkeypatch):
    """The backward of chains takes the way of CUDA tensors, with these fakes for kernels; returns the runtime."""

    def install(fakes):
        runtime = Runtime()
        runtime.timer, runtime.list_gradients = fakes.timer, fakes.candidates
        runtime.backends = lambda x: ("cuda", "triton")
        monkeypatch.setattr(runtime_module, "runtime", runtime)
        monkeypatch.setattr(autograd, "_has_kernels", lambda grad: not torch.is_grad_enabled())
        return runtime

    return install


def make_block(stride=1, activation=nn.ReLU6):
    torch.manual_seed(0)
    block = InvertedResidual(8, 8, stride, 4)
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.weight, 0.5, 2.0)
            nn.init.normal_(module.bias)
    return block.eval()


def gradients_of(model, x):
    x = x.clone().requires_grad_()
    y = model(x)
    y.backward(torch.linspace(-1, 1, y.numel()).view(y.shape))
    return [x.grad, *(p.grad for p in model.parameters())]


ALL = {
    "depthwise_input": {"cuda.a": 0.5, "triton.a": 0.75},
    "depthwise_weight": {"cuda.a": 0.5, "triton.a": 0.25},
    "batch_norm": {"triton.a": 0.5},
}


@pytest.mark.parametrize("stride", [1, 2])
def test_each_gradient_takes_its_own_fastest_kernel(as_on_gpu, stride):
    block, x = make_block(stride), torch.randn(2, 8, 7, 5)
    fused = fuse(copy.deepcopy(block), training=False)
    runtime = as_on_gpu(Fakes(**ALL))
    for ours, wanted in zip(gradients_of(fused, x), gradients_of(block, x), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-4)
    # Three BatchNorms, those after expand and project without or with activation alike.
    assert runtime.counters == {"depthwise_input cuda.a": 1, "depthwise_weight triton.a": 1, "batch_norm triton.a": 3}


def test_on_the_cpu_nothing_is_asked(monkeypatch):
    fakes, runtime = Fakes(**ALL), Runtime()
    runtime.list_gradients = fakes.candidates
    monkeypatch.setattr(runtime_module, "runtime", runtime)
    gradients_of(fuse(make_block(), training=False), torch.randn(2, 8, 7, 5))
    assert (runtime.counters, fakes.calls) == ({}, [])


def test_cuda_tensors_go_to_the_operators():
    """Traced with fake CUDA tensors: the two operators are asked, and PyTorch's backwards are not."""
    if torch.version.cuda is None:
        pytest.skip("needs a torch with CUDA")
    names = ("weight", "bn_weight", "bn_bias", "running_mean", "running_var")
    spec = ConvSpec(8, 8, (3, 3), padding=(1, 1, 1, 1), depthwise=True, activation="relu6", sources=names)

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            asked.append(str(function))
            return function(*args, **(kwargs or {}))

    for device, expected in (("cuda", True), ("cpu", False)):
        asked = []
        with FakeTensorMode(), torch.no_grad():
            tensors = {name: torch.empty(8, device=device) for name in names[1:]}
            tensors["weight"] = torch.empty(8, 1, 3, 3, device=device)
            stage, y = autograd._forward_stage(spec, tensors, torch.empty(2, 8, 7, 5, device=device))
            with Record():
                dx, grads = autograd._backward_stage(stage, torch.empty_like(y))
        assert [(t.shape, t.device.type) for t in (dx, grads["weight"])] == [
            ((2, 8, 7, 5), device),
            ((8, 1, 3, 3), device),
        ]
        ours = [name for name in asked if name.startswith("mobilenet_ext_gpu.")]
        wanted = ["mobilenet_ext_gpu.norm_backward.default", "mobilenet_ext_gpu.depthwise_backward.default"]
        assert ours == (wanted if expected else [])
        assert ("aten.convolution_backward.default" in asked) is not expected


def test_wrong_slower_and_failing_kernels_are_not_used(as_on_gpu):
    runtime = as_on_gpu(
        Fakes(
            depthwise_input={"cuda.wrong": 0.1, "triton.a": 0.5},
            depthwise_weight={"cuda.raises": 0.1, "triton.slow": 2.0},
            batch_norm={"triton.wrong": 0.1},
        )
    )
    gradients_of(fuse(make_block(), training=False), torch.randn(2, 8, 7, 5))
    assert runtime.counters == {"depthwise_input triton.a": 1, "depthwise_weight aten": 1, "batch_norm aten": 3}
    rejected = {key.split(".")[1]: verdict.rejected for key, verdict in runtime.verdicts()}
    assert "wrong by" in rejected["depthwise_input"]["cuda.wrong"]
    assert rejected["depthwise_weight"] == {"cuda.raises": "RuntimeError: no code for this architecture"}
    assert "wrong by" in rejected["batch_norm"]["triton.wrong"]


@pytest.mark.parametrize(("mode", "chosen"), [("off", "aten"), ("trust", "cuda.a")])
def test_modes(as_on_gpu, monkeypatch, mode, chosen):
    monkeypatch.setenv("MOBILENET_EXT_GPU", mode)
    fakes = Fakes(**ALL)
    runtime = as_on_gpu(fakes)
    gradients_of(fuse(make_block(), training=False), torch.randn(2, 8, 7, 5))
    assert runtime.counters[f"depthwise_input {chosen}"] == 1
    assert len(fakes.calls) == (0 if mode == "off" else 5)  # trusted kernels run once: nothing is compared


def test_nothing_is_checked_while_a_graph_is_captured(as_on_gpu):
    fakes = Fakes(**ALL)
    runtime, fused, x = as_on_gpu(fakes), fuse(make_block(), training=False), torch.randn(2, 8, 7, 5)
    runtime.capturing = lambda image: True
    gradients_of(fused, x)
    assert fakes.calls == []
    runtime.capturing = lambda image: False
    gradients_of(fused, x)
    before = len(fakes.calls)
    runtime.capturing = lambda image: True
    gradients_of(fused, x)
    assert fakes.calls[before:].count(("depthwise_weight", "triton.a")) == 1
    assert len(fakes.calls) == before + 5


def test_a_second_derivative_takes_pytorch(as_on_gpu):
    fakes = Fakes(**ALL)
    as_on_gpu(fakes)
    fused, x = fuse(make_block(), training=False), torch.randn(2, 8, 7, 5, requires_grad=True)
    torch.autograd.grad(fused(x).square().sum(), x, create_graph=True)
    assert fakes.calls == []


def test_a_compiled_backward_asks_as_well(as_on_gpu):
    block, x = make_block(), torch.randn(2, 8, 7, 5)
    wanted = gradients_of(copy.deepcopy(block), x)
    runtime = as_on_gpu(Fakes(**ALL))
    compiled = torch.compile(fuse(block, training=False), fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(gradients_of(compiled, x), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert runtime.counters["depthwise_weight triton.a"] == 1


def depthwise_job(kind, kernel=3, stride=1, padding=(1, 1), dtype=torch.float32, size=(7, 6)):
    torch.manual_seed(0)
    x, weight = torch.randn(5, 8, *size, dtype=dtype), torch.randn(8, 1, kernel, kernel, dtype=dtype)
    y = torch.nn.functional.conv2d(x, weight, None, stride, padding, 1, 8)
    return DepthwiseJob(kind, torch.randn_like(y), x, weight, DepthwiseGeometry((stride,) * 2, padding, (1, 1)))


def norm_job(dtype=torch.float32, activation="relu6"):
    torch.manual_seed(0)
    v, vectors = 4 * torch.randn(5, 8, 7, 6, dtype=dtype), torch.rand(4, 8) + 0.5
    mean, rstd, weight, bias = vectors
    before = (v - mean.view(1, -1, 1, 1)) * (rstd * weight).view(1, -1, 1, 1) + bias.view(1, -1, 1, 1)
    return BatchNormJob(torch.randn_like(v), v, before.to(dtype), mean, rstd, weight, bias, activation)


def in_fp32(job):
    v, vectors = job.v.float(), (job.mean, job.rstd, job.weight)
    before = (v - job.mean.view(1, -1, 1, 1)) * (job.rstd * job.weight).view(1, -1, 1, 1) + job.bias.view(1, -1, 1, 1)
    dv, *sums = gradients.norm_backward(job.activation, job.g.float(), v, before, *vectors)
    return dv.to(job.v.dtype), *sums


JOBS = [
    *(lambda d, k=k: depthwise_job(k, dtype=d) for k in gradients.KINDS[:2]),
    *(lambda d, a=a: norm_job(d, a) for a in ("none", "relu", "relu6")),
]


@pytest.mark.parametrize("make", JOBS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_check_holds_for_right_results_and_finds_one_wrong_element(make, dtype):
    """PyTorch's; behind an activation those with fp32 arithmetic, since rounding before it moves the mask."""
    job = make(dtype)
    results = job.baseline() if isinstance(job, DepthwiseJob) else in_fp32(job)
    right = Candidate("cuda.right", lambda job: results)
    assert try_out_gradient(job, [right], lambda call: 1.0).rejected == {}
    for place in range(len(results)):
        changed = [y.clone() for y in results]
        changed[place].view(-1)[3] += changed[place].abs().max()
        other = Candidate("cuda.other", lambda job, y=tuple(changed): y)
        assert "cuda.other" in try_out_gradient(job, [other], lambda call: 1.0).rejected


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5])
def test_the_cuda_kernels_are_asked_in_their_own_terms(monkeypatch, kernel, stride):
    """Stand-ins with the signatures of backends/cuda.py, computed by PyTorch's own functions for gradients."""

    def data(dy, weight, stride, padding, size):
        taps = weight.permute(2, 0, 1).unsqueeze(1)
        return torch.nn.grad.conv2d_input((*dy.shape[:2], *size), taps, dy, stride, padding, 1, dy.shape[1])

    def weight_(x, dy, kernel, stride, padding):
        shape = (x.shape[1], 1, kernel, kernel)
        return torch.nn.grad.conv2d_weight(x, shape, dy, stride, padding, 1, x.shape[1])[:, 0].permute(1, 2, 0)

    monkeypatch.setattr(cuda, "depthwise_backward_data", data)
    monkeypatch.setattr(cuda, "depthwise_backward_weight", weight_)
    for kind in ("depthwise_input", "depthwise_weight"):
        job = depthwise_job(kind, kernel, stride, (kernel // 2, kernel // 2 - 1), size=(9, 11))
        (found,) = gradients.candidates(job, ("cuda",))
        assert found.name == "cuda.gradient:0"
        torch.testing.assert_close(found.run(job), job.baseline(), rtol=1e-5, atol=1e-5)


def test_who_takes_what():
    def names(job, backends=("cuda", "triton")):
        return {candidate.backend for candidate in gradients.candidates(job, backends)}

    assert names(depthwise_job("depthwise_weight")) == {"cuda", "triton"}
    assert names(depthwise_job("depthwise_input", kernel=7, padding=(3, 3))) == {"triton"}
    assert names(depthwise_job("depthwise_input", kernel=9, padding=(4, 4))) == set()
    assert names(norm_job()) == {"triton"}
    assert names(norm_job(), ()) == set()
    assert names(depthwise_job("depthwise_weight", dtype=torch.float64)) == set()
