"""What was found out about each (item, dtype, shape class) on this machine, kept in memory and on disk.

The file is named by everything that could make an old verdict wrong: device, driver, torch, Triton, and the contents of
this package's GPU code.  A file that cannot be read or written is no error: the check is then made again.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import tempfile
from dataclasses import asdict
from functools import cache
from importlib import metadata
from pathlib import Path

import torch

from mobilenet_ext.backends.gpu.precision import some_tf32
from mobilenet_ext.backends.gpu.trial import Verdict
from mobilenet_ext.spec import ChainItem, encode


def item_key(item: ChainItem) -> str:
    """An item as text, eps left out: it changes no kernel."""
    program, _ = encode((item,))
    return ".".join(map(str, program[3:]))


def shape_key(item: ChainItem, x: torch.Tensor, planar: bool) -> str:
    """The class that a verdict is for: the image's exact size, the batch up to a power of two, dtype and layout."""
    batch = 1 << max(0, int(x.shape[0]) - 1).bit_length()
    tf32 = "+tf32" if some_tf32(x.dtype) else ""
    dtype = str(x.dtype).removeprefix("torch.") + tf32
    layout = "nchw" if planar else "nhwc"
    return f"{item_key(item)}|{dtype}|n{batch}|{'x'.join(map(str, x.shape[1:]))}|{layout}"


@cache
def _code_digest() -> str:
    root = Path(__file__).parent.parent
    digest = hashlib.sha256()
    kernels = [
        *root.glob("gpu/*.py"),
        *root.glob("triton/*.py"),
        root / "cuda.py",
        *root.parent.glob("libmobilenet_ext_cuda.so"),
    ]
    judges = [root / "aten.py", root.parent / "tolerance.py", root.parent / "spec.py"]
    for path in sorted([*kernels, *judges]):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _driver_version() -> str:
    """What the NVIDIA driver calls itself; its file names the release, the library only the CUDA version it serves."""
    try:
        return Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    except (OSError, IndexError):
        pass
    version = ctypes.c_int()
    try:
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return "unknown"
    return str(version.value)


@cache
def fingerprint(device: torch.device) -> str:
    """What a verdict depends on besides its key, as text."""
    try:
        triton = metadata.version("triton")
    except metadata.PackageNotFoundError:
        triton = "none"
    parts = [f"torch {torch.__version__}", f"triton {triton}", f"code {_code_digest()}"]
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        driver = _driver_version() if torch.version.hip is None else torch.version.hip
        parts = [properties.name, f"{properties.major}.{properties.minor}", f"driver {driver}", *parts]
    return ", ".join([device.type, *map(str, parts)])


def directory() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "mobilenet_ext" / "gpu"


class Choices:
    """The verdicts for one device; ``get`` and ``put`` by key."""

    def __init__(self, device: torch.device) -> None:
        self.fingerprint = fingerprint(device)
        name = hashlib.sha256(self.fingerprint.encode()).hexdigest()[:24]
        self.path = directory() / f"{name}.json"
        self.verdicts: dict[str, Verdict] = self._load()

    def _load(self) -> dict[str, Verdict]:
        try:
            content = json.loads(self.path.read_text())
            if content["fingerprint"] != self.fingerprint:
                return {}
            return {key: Verdict(**value) for key, value in content["verdicts"].items()}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def get(self, key: str) -> Verdict | None:
        return self.verdicts.get(key)

    def put(self, key: str, verdict: Verdict) -> None:
        """Keep a verdict; the file is replaced in one step, and what other processes wrote meanwhile stays."""
        self.verdicts[key] = verdict
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            merged = {**self._load(), **self.verdicts}
            content = {
                "fingerprint": self.fingerprint,
                "verdicts": {k: asdict(v) for k, v in merged.items() if v.lasting},
            }
            with tempfile.NamedTemporaryFile("w", dir=self.path.parent, delete=False) as file:
                json.dump(content, file, indent=1)
            os.replace(file.name, self.path)
        except OSError:
            pass
