"""What a reader of a benchmark has to know about where it ran."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch

import mobilenet_ext
from mobilenet_ext._library import native

# Settings of the environment that change what is measured.
_PREFIXES = ("OMP_", "GOMP_", "KMP_", "MKL_", "DNNL_", "ONEDNN_", "ORT_", "OV_", "MOBILENET_EXT_", "TORCHINDUCTOR_")


def describe() -> dict[str, Any]:
    """Plain values for JSON."""
    return {
        "cpu": _cpu_name(),
        "cores": cores(),
        "caches": dict(native.cache_sizes()),
        "features": sorted(name for name, present in native.cpu_features().items() if present),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "mobilenet_ext": mobilenet_ext.__version__,
        "load": round(os.getloadavg()[0], 2),
        "environment": {name: value for name, value in os.environ.items() if name.startswith(_PREFIXES)},
    }


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0))


def child_environment() -> dict[str, str]:
    """An environment in which a new Python finds the very packages of this one."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(str(Path(entry).resolve()) for entry in sys.path)}


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
