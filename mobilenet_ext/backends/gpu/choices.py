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

from mobilenet_ext.backends.gpu.trial import Verdict


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
    judges = [root / "aten.py", *(root.parent / name for name in ("folding.py", "spec.py", "tolerance.py"))]
    for path in sorted([*kernels, *judges]):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _driver_version() -> str:
    """What the driver calls itself; NVIDIA's file names the release, its library only the CUDA version it serves."""
    for path in ("/sys/module/amdgpu/version",) if torch.version.hip else ("/proc/driver/nvidia/version",):
        try:
            return Path(path).read_text().splitlines()[0]
        except (OSError, IndexError):
            pass
    if torch.version.hip:
        return os.uname().release  # amdgpu comes with the kernel where it has no version of its own
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
        # Multiprocessors: plans count them, and a slice of a GPU has fewer.
        parts = [
            properties.name, f"{properties.major}.{properties.minor}", f"{properties.multi_processor_count} processors",
            f"driver {_driver_version()}", f"runtime {torch.version.hip or torch.version.cuda}",
            f"cudnn {torch.backends.cudnn.version()}", *parts,
        ]  # fmt: skip
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
