"""``import mobilenet_ext`` and a fused call, with and without the CUDA library, on a torch with and one without CUDA.

Each case is a process of its own on a copy of the installed package, made of links, in which the library is as built,
missing, or a file that does not load.  A torch without CUDA is the one that is here where it has none; where it has,
``torch.version.cuda`` is emptied first, which is what the package decides by.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mobilenet_ext

PACKAGE = Path(mobilenet_ext.__file__).parent
LIBRARY = "libmobilenet_ext_cuda.so"
WITHOUT_CUDA = "this torch is built without CUDA"
CODE = """
import json, sys
from pathlib import Path
import torch
if sys.argv[1] == "without":
    torch.version.cuda = None
    torch.cuda.is_available = lambda: False
is_loaded = lambda: "libmobilenet_ext_cuda" in Path("/proc/self/maps").read_text()
import mobilenet_ext
from mobilenet_ext._library import native
from mobilenet_ext.backends import cuda
from mobilenet_ext.info import collect
block = mobilenet_ext.models.InvertedResidual(8, 8, 1, 4).eval()
x = torch.randn(1, 8, 6, 5)
with torch.no_grad():
    error = (mobilenet_ext.fuse(block)(x) - block(x)).abs().max().item()
found = {"package": str(Path(mobilenet_ext.__file__).parent), "error": error, "ran": sum(native.counters().values())}
found["loaded_by_import"] = is_loaded()
found["reason"] = cuda.installed()
found["loaded"] = is_loaded()
found["info"] = [b["name"] for b in collect()["backends"]]
print(json.dumps(found))
"""


def run(tree, library, torch_cuda):
    package = tree / "mobilenet_ext"
    package.mkdir()
    for entry in PACKAGE.iterdir():
        if entry.name != LIBRARY:
            (package / entry.name).symlink_to(entry)
    # A folder that is linked as a whole would find its parent beside the original.
    (package / "backends").unlink()
    (package / "backends").mkdir()
    for entry in (PACKAGE / "backends").iterdir():
        (package / "backends" / entry.name).symlink_to(entry)
    if library == "built":
        if not (PACKAGE / LIBRARY).is_file():
            pytest.skip("the CUDA C++ kernels were not built here")
        (package / LIBRARY).symlink_to(PACKAGE / LIBRARY)
    elif library == "broken":
        (package / LIBRARY).write_bytes(b"no library")
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    environment.pop("MOBILENET_EXT_DISABLE", None)
    command = [sys.executable, "-c", CODE, torch_cuda]
    done = subprocess.run(command, env=environment, cwd=tree, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["package"] == str(package)
    assert found["ran"] > 0
    assert found["error"] < 1e-4
    assert not found["loaded_by_import"]
    assert found["info"] == ["cpu", "cuda", "triton", "aten"]
    return found


@pytest.mark.parametrize("library", ["built", "missing", "broken"])
def test_on_the_torch_that_is_here(tmp_path, library):
    found = run(tmp_path, library, "as it is")
    assert found["loaded"] == (library == "built" and torch.version.cuda is not None)
    if torch.version.cuda is None:
        assert found["reason"] == WITHOUT_CUDA
    elif library == "built":
        assert found["reason"] is None
    elif library == "missing":
        assert found["reason"].startswith("the CUDA C++ kernels were not built; install with nvcc")
    else:
        assert found["reason"].startswith(f"{LIBRARY} does not load with torch {torch.__version__}: ")


@pytest.mark.parametrize("library", ["built", "missing"])
def test_on_a_torch_without_cuda(tmp_path, library):
    found = run(tmp_path, library, "without")
    assert (found["reason"], found["loaded"]) == (WITHOUT_CUDA, False)
