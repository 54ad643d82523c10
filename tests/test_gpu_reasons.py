"""Why no GPU kernel runs, one sentence per cause, from the backends, from info and from the report; PyTorch then runs.

The machine's answers are faked, so every cause is seen without a GPU.
"""

import sys
import types
from importlib.util import find_spec

import pytest
import torch
from test_gpu_choice import SPEC, Fakes, X, make_runtime, packed_item

from mobilenet_ext import gpu_verdicts, info
from mobilenet_ext.backends import choose, cuda, triton
from mobilenet_ext.backends.gpu import runtime as runtime_module
from mobilenet_ext.backends.gpu.plans import run_aten

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")

DEVICE = torch.device("cuda", 0)
OLD_DRIVER = "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver"
NO_CODE = "the CUDA runtime says: no kernel image is available for execution on the device"


def _raise(message):
    def function(*_):
        raise RuntimeError(message + "\nsecond line")

    return function


def _no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch._C, "_cuda_init", _raise("No CUDA GPUs are available"), raising=False)


def _old_driver(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch._C, "_cuda_init", _raise(OLD_DRIVER), raising=False)


def _old_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))


def _no_code(monkeypatch):
    monkeypatch.setattr(torch.ops, "mobilenet_ext_cuda", types.SimpleNamespace(probe=_raise(NO_CODE)), raising=False)


def _no_triton(monkeypatch):
    monkeypatch.setattr(triton, "find_spec", lambda name: None)


CAUSES = {  # the fake, and what the two backends then say
    "no GPU": (_no_gpu, *["torch sees no CUDA device: No CUDA GPUs are available"] * 2),
    "driver older than the build": (_old_driver, *[f"torch sees no CUDA device: {OLD_DRIVER}"] * 2),
    "old GPU": (
        _old_gpu,
        "the GPU has compute capability 7.5; the CUDA kernels need 8.0 or newer",
        "the GPU has compute capability 7.5; the Triton kernels need 8.0 or newer",
    ),
    "no code for this GPU": (_no_code, f"the CUDA kernels do not start on this GPU: {NO_CODE}", None),
    "no Triton": (_no_triton, None, "Triton is not installed; `pip install triton` brings it"),
}


@pytest.fixture(params=CAUSES)
def cause(request, monkeypatch, tmp_path):
    """A machine with everything, less one thing; yields what the CUDA and the Triton backend say."""
    caches = (cuda.installed, cuda.device_reason, triton.installed, triton.device_reason)
    for function in caches:
        function.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("MOBILENET_EXT_GPU", raising=False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(cuda, "installed", lambda: None)
    monkeypatch.setattr(triton, "find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "triton.language", types.ModuleType("language"))
    monkeypatch.setattr(torch.ops, "mobilenet_ext_cuda", types.SimpleNamespace(probe=lambda index: None), raising=False)
    fake, *sentences = CAUSES[request.param]
    fake(monkeypatch)
    yield tuple(sentences)
    for function in caches:
        function.cache_clear()


def test_the_backends_say_it_in_one_sentence(cause):
    assert (cuda.unsupported(SPEC, DEVICE, torch.float16), triton.unsupported(SPEC, DEVICE, torch.float16)) == cause
    assert not any("\n" in sentence for sentence in cause if sentence)


def test_the_first_backend_left_is_chosen(cause):
    found, reasons = choose((SPEC,), DEVICE, torch.float16)
    assert found.name == ("cuda" if cause[0] is None else "triton" if cause[1] is None else "aten")
    assert reasons.get("cuda") == cause[0]


def test_info_says_it(cause):
    collected = info.collect()
    if not torch.cuda.is_available():
        assert collected["devices"]["cuda"] == cause[0]
        return
    assert collected["devices"]["cuda"] is None
    reasons = {b["name"]: {c["reason"] for c in b["runs"] if c["device"] == "cuda"} for b in collected["backends"]}
    assert (reasons["cuda"], reasons["triton"], reasons["aten"]) == ({cause[0]}, {cause[1]}, {None})


def test_the_operator_runs_what_is_left_and_the_report_says_why(cause, monkeypatch):
    usable = ()
    if torch.cuda.is_available():
        usable = runtime_module.usable_backends(types.SimpleNamespace(is_cuda=True, device=DEVICE))
    assert usable == tuple(name for name, reason in zip(("cuda", "triton"), cause, strict=True) if reason is None)
    runtime, packed = make_runtime(Fakes(**{"cuda.a": 0.5, "triton.b": 0.5}), backends=usable), packed_item()
    monkeypatch.setattr(gpu_verdicts, "runtime", runtime)
    assert torch.equal(runtime.run_item(packed, X), run_aten(packed, X))
    (verdict,) = gpu_verdicts.verdicts_on([(SPEC, "0")])
    assert verdict.choice == ("cuda.a" if "cuda" in usable else "triton.b" if "triton" in usable else "aten")
    assert verdict.not_checked == {
        name: reason for name, reason in zip(("cuda", "triton"), cause, strict=True) if reason is not None
    }
