"""Peak memory of one forward, from the operating system's view of a process of its own (Linux)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import mobilenet_ext
from mobilenet_ext.bench.machine import child_environment
from mobilenet_ext.loading import NO_FILES, Files

_FORMS = ("mobilenet_ext", "eager", "eager channels_last")


def measure(
    model: str, batch: int, size: tuple[int, int] | None, threads: int, files: Files = NO_FILES
) -> list[dict[str, Any]]:
    """Bytes that a forward of ``batch`` images takes at its highest point above what is there before it."""
    rows = []
    for form in _FORMS:
        arguments = [model, str(batch), json.dumps(size), str(threads), form, json.dumps(files)]
        command = [sys.executable, "-m", "mobilenet_ext.bench.memory", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=child_environment())
        if done.returncode:
            raise RuntimeError(f"memory of {form}: {(done.stderr.strip().splitlines() or ['it was killed'])[-1]}")
        rows.append({"model": model, "batch": batch, "form": form, "bytes": int(done.stdout.split()[-1])})
    return rows


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}")


def _main(name: str, batch: str, size: str, threads: str, form: str, files: str) -> int:
    from mobilenet_ext.bench.cases import network

    torch.set_num_threads(int(threads))
    case = network(name, json.loads(size) and tuple(json.loads(size)), Files(*json.loads(files)))
    model = case.model
    example = case.example(int(batch))
    if form == "mobilenet_ext":
        model = mobilenet_ext.fuse(model)
    if form == "eager channels_last":
        model, example = model.to(memory_format=torch.channels_last), example.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        model(example[:1])  # packs weights, starts threads
        Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark back to what is there now
        before = _status("VmRSS")
        model(example)
    return _status("VmHWM") - before


if __name__ == "__main__":
    print(_main(*sys.argv[1:]))
