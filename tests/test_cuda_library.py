"""The CUDA C++ library as far as a machine without a GPU shows it: it loads, registers, and says why it cannot run."""

import subprocess
import sys

import pytest
import torch

from mobilenet_ext.backends import cuda
from mobilenet_ext.spec import BlockSpec, ConvSpec

BLOCK = BlockSpec(depthwise=ConvSpec(8, 8, (3, 3), padding=(1, 1, 1, 1), depthwise=True))
built = pytest.mark.skipif(not cuda.LIBRARY.is_file(), reason="the CUDA C++ kernels were not built here")


@built
def test_it_loads_and_registers():
    if torch.version.cuda is None:
        assert cuda.installed() == "this torch is built without CUDA"
        return
    assert cuda.installed() is None
    for name in ("depthwise", "depthwise_backward_data", "depthwise_backward_weight", "inverted_residual"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"mobilenet_ext_cuda::{name}", "CUDA")


@built
def test_without_a_gpu_it_says_so_in_the_drivers_words():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    if torch.version.cuda is None:
        assert cuda.unsupported(BLOCK, torch.device("cuda"), torch.float16) == "this torch is built without CUDA"
        return
    assert cuda.installed() is None
    with pytest.raises(RuntimeError, match="the CUDA runtime says: "):
        torch.ops.mobilenet_ext_cuda.probe(0)


@built
def test_importing_the_package_does_not_load_it():
    code = "import mobilenet_ext, torch; assert 'libmobilenet_ext_cuda' not in open('/proc/self/maps').read()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_library_is_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(cuda, "LIBRARY", tmp_path / "libmobilenet_ext_cuda.so")
    cuda.installed.cache_clear()
    try:
        reason = cuda.unsupported(BLOCK, torch.device("cuda"), torch.float16)
        assert "not built" in reason or "without CUDA" in reason
        (tmp_path / "libmobilenet_ext_cuda.so").write_bytes(b"no library")
        cuda.installed.cache_clear()
        assert "does not load" in cuda.installed() or "without CUDA" in cuda.installed()
    finally:
        cuda.installed.cache_clear()


def test_reasons_name_what_was_found():
    assert cuda.unsupported(BLOCK, torch.device("cpu"), torch.float16) == (
        "the tensors are on cpu; the CUDA kernels need cuda"
    )
    wide = ConvSpec(8, 8, (7, 7), padding=(3, 3, 3, 3), depthwise=True)
    assert "kernel (7, 7), stride (1, 1)" in cuda.depthwise_reason(wide)
    assert cuda.depthwise_reason(BLOCK.depthwise) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("9.0", "-gencode=arch=compute_90,code=sm_90"),
        (
            "8.0;9.0a+PTX",
            "-gencode=arch=compute_80,code=sm_80 -gencode=arch=compute_90a,code=sm_90a "
            "-gencode=arch=compute_90a,code=compute_90a",
        ),
    ],
)
def test_architectures(environment, text, expected):
    assert environment.gencode_options(text) == expected


@pytest.mark.parametrize(("text", "part"), [("Hopper", "'Hopper'"), ("7.5", "8.0 or newer"), (";", "no architecture")])
def test_wrong_architectures(environment, text, part):
    with pytest.raises(environment.BuildError, match=part):
        environment.gencode_options(text)


def test_the_setting_that_asks_for_cuda(environment, monkeypatch, tmp_path):
    torch_without = environment.Torch(tmp_path, "2.14.1")
    monkeypatch.setenv("MOBILENET_EXT_CUDA", "1")
    with pytest.raises(environment.BuildError, match="asks for the CUDA part, but the torch in"):
        environment.cuda_part(torch_without)
    monkeypatch.setenv("MOBILENET_EXT_CUDA", "auto")
    assert environment.cuda_part(torch_without).nvcc is None
    monkeypatch.setenv("MOBILENET_EXT_CUDA", "maybe")
    with pytest.raises(environment.BuildError, match="MOBILENET_EXT_CUDA is 'maybe'; allowed are auto, 1 and 0"):
        environment.cuda_part(torch_without)


def test_a_wrapper_named_nvcc_is_followed(environment, monkeypatch, tmp_path):
    home = tmp_path / "toolkit"
    for name in ("bin/nvcc", "include/cuda_runtime.h"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text("")
    wrapper = tmp_path / "path/nvcc"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\nexec {home}/bin/nvcc "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", str(wrapper.parent))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    assert environment.find_nvcc() == home / "bin/nvcc"


@pytest.fixture
def environment():
    """The build's own module, which the installed package does not carry."""
    import importlib.util
    from pathlib import Path

    path = Path(__file__).parents[1] / "build_backend/environment.py"
    spec = importlib.util.spec_from_file_location("mobilenet_ext_build_environment", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
