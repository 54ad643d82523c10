"""Costs outside the steady state: importing, fusing, the first call."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import torch

import mobilenet_ext
from mobilenet_ext._library import native
from mobilenet_ext.bench.cases import Case
from mobilenet_ext.bench.machine import child_environment
from mobilenet_ext.bench.statistics import median

_REPEATS = 3
_IMPORT = """
import time
start = time.perf_counter()
import torch
middle = time.perf_counter()
import mobilenet_ext
print(middle - start, time.perf_counter() - middle)
"""


def import_times() -> dict[str, float]:
    """Seconds to import torch and, after it, this package, in new processes; medians of three."""
    runs = []
    for _ in range(_REPEATS):
        command = [sys.executable, "-c", _IMPORT]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=child_environment())
        runs.append([float(word) for word in done.stdout.split()])
    return {"import_torch": median([run[0] for run in runs]), "import_mobilenet_ext": median([run[1] for run in runs])}


def model_times(case: Case) -> dict[str, Any]:
    """Seconds to fuse a network and for its first and second call on one image, and how often each packed."""
    example = case.example(1)
    start = time.perf_counter()
    fused = mobilenet_ext.fuse(case.model)
    result: dict[str, Any] = {"model": case.name, "fuse": time.perf_counter() - start}
    with torch.inference_mode():
        for name in ("first", "second"):
            packed = native.pack_count()
            start = time.perf_counter()
            fused(example)
            result[f"{name}_call"] = time.perf_counter() - start
            result[f"{name}_call_packs"] = native.pack_count() - packed
    return result
