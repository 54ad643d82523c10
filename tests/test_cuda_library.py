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


def _calls():
    """Calls on CPU tensors that are right but for that, by operator: arguments by name."""
    image = torch.randn(2, 8, 5, 5).to(memory_format=torch.channels_last)
    taps, vector, matrix = torch.randn(3, 3, 8), torch.randn(8), torch.randn(8, 8)
    geometry = [3, 1, 1, 1, 5, 5]
    return {
        "depthwise": {
            "x": image, "weight": taps, "scale": vector, "shift": vector, "geometry": geometry, "activation": 2
        },
        "depthwise_backward_data": {"dy": image, "weight": taps, "geometry": geometry},
        "depthwise_backward_weight": {"x": image, "dy": image, "geometry": geometry},
        "inverted_residual": {
            "x": image, "tensors": [t for weight in (matrix, taps, matrix) for t in (weight, vector, vector)],
            "geometry": geometry, "activations": [2, 2, 0], "residual": True, "tf32": False,
        },
    }  # fmt: skip


def _with(tensors, index, tensor):
    return [*tensors[:index], tensor, *tensors[index + 1 :]]


BAD = [
    ("depthwise", {}, "x is on cpu; allowed: cuda"),
    ("depthwise_backward_data", {}, "dy is on cpu; allowed: cuda"),
    ("depthwise_backward_weight", {}, "x is on cpu; allowed: cuda"),
    ("inverted_residual", {}, "x is on cpu; allowed: cuda"),
    ("depthwise", {"x": torch.zeros(8, 5)}, r"x has shape \(8, 5\); allowed: four dimensions"),
    ("depthwise", {"x": torch.zeros(2, 8, 5, 5)}, r"strides \(200, 25, 5, 1\); allowed: those of channels_last"),
    (
        "depthwise",
        {"x": torch.zeros(2, 8, 5, 5).double().to(memory_format=torch.channels_last)},
        "x is Double; allowed: Float, Half, BFloat16",
    ),
    ("depthwise", {"weight": torch.zeros(3, 3, 8).half()}, "weight is Half; allowed: Float"),
    ("depthwise", {"weight": torch.zeros(3, 3, 9)}, r"weight has shape \(3, 3, 9\) and .*; allowed: 72 contiguous"),
    ("depthwise", {"scale": torch.zeros(7)}, r"scale has shape \(7\) and .*; allowed: 8 contiguous"),
    ("depthwise", {"shift": torch.zeros(8).double()}, "shift is Double; allowed: Float"),
    ("depthwise", {"activation": 3}, r"activation is 3; allowed: 0 \(none\), 1 \(ReLU\), 2 \(ReLU6\)"),
    ("depthwise", {"geometry": [3, 1, 1, 1, 5]}, "geometry has 5 numbers; allowed: 6"),
    ("depthwise", {"geometry": [7, 1, 1, 1, 5, 5]}, "geometry has kernel 7; allowed: 3, 5"),
    ("depthwise", {"geometry": [3, 4, 1, 1, 5, 5]}, "geometry has stride 4; allowed: 1, 2"),
    ("depthwise", {"geometry": [3, 1, -1, 1, 5, 5]}, r"geometry holds -1; allowed: 0 to 2\^31 - 1"),
    ("depthwise", {"geometry": [3, 1, 1, 1, 0, 5]}, "a result of 0 x 5 pixels; allowed: at least 1"),
    (
        "depthwise_backward_weight",
        {"dy": torch.zeros(2, 8, 4, 5).to(memory_format=torch.channels_last)},
        r"dy has shape \(2, 8, 4, 5\); allowed: \(2, 8, 5, 5\)",
    ),
    (
        "depthwise_backward_weight",
        {"dy": torch.zeros(2, 8, 5, 5).half().to(memory_format=torch.channels_last)},
        "dy is Half; allowed: that of x, Float",
    ),
    ("inverted_residual", {"geometry": [5, 1, 2, 2, 5, 5]}, "kernel 5; allowed for a whole block: 3"),
    ("inverted_residual", {"activations": [2, 2]}, "activations has 2 entries; allowed: 3"),
    ("inverted_residual", {"activations": [2, 9, 0]}, "depthwise activation is 9; allowed: 0"),
    ("inverted_residual", {"geometry": [3, 2, 1, 1, 3, 3]}, "is 8 x 3 x 3; allowed with a residual: 8 x 5 x 5"),
    (
        "inverted_residual",
        {"x": torch.zeros(1 + 8 * 25)[1:].view(1, 5, 5, 8).permute(0, 3, 1, 2)},
        "x begins 4 bytes after a multiple of 16; allowed: on one",
    ),
    ("inverted_residual", {"tensors": []}, "tensors has 0 entries; allowed: 9"),
    (
        "inverted_residual",
        {"tensors": lambda t: _with(t, 0, torch.zeros(8, 12))},
        "widths of the block are 8, 12 and 8; allowed: multiples of 8",
    ),
    ("inverted_residual", {"tensors": lambda t: _with(t, 0, torch.zeros(64))}, r"expand weight has shape \(64\)"),
    ("inverted_residual", {"tensors": lambda t: _with(t, 6, torch.zeros(64))}, r"project weight has shape \(64\)"),
    ("inverted_residual", {"tensors": lambda t: _with(t, 4, torch.zeros(3))}, r"depthwise scale has shape \(3\)"),
]


@built
@pytest.mark.skipif(torch.version.cuda is None, reason="needs a torch with CUDA")
@pytest.mark.parametrize(("name", "change", "message"), BAD)
def test_messages_have_the_argument_the_value_and_what_is_allowed(name, change, message):
    assert cuda.installed() is None
    arguments = _calls()[name]
    for key, value in change.items():
        arguments[key] = value(arguments[key]) if callable(value) else value
    with pytest.raises(RuntimeError, match=message):
        getattr(torch.ops.mobilenet_ext_cuda, name)(**arguments)


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
