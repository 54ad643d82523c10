"""A training step, plain and fused: time, what is saved for backward, peak memory, gradient errors, depthwise layers.

Every contender lives in a process of its own, since the memory allocator of one process makes the steps of another
model faster or slower.  The processes take turns, one step each per round; ratios are paired within a round.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobilenet_ext import fuse
from mobilenet_ext.bench.machine import child_environment
from mobilenet_ext.loading import NO_FILES, Files
from mobilenet_ext.spec import ROLES
from mobilenet_ext.training import backward
from mobilenet_ext.training.block import Block

FORMS = ("eager channels_last", "torch.compile", "mobilenet_ext")
MODES = ("frozen", "batch")
Progress = Callable[[str, float], None]

# channels, size, stride: the depthwise layers of MobileNetV2 and V1 at 224.
LAYERS = (
    (32, 112, 1), (96, 112, 2), (144, 56, 1), (144, 56, 2), (192, 28, 1), (192, 28, 2), (384, 14, 1), (576, 14, 1),
    (576, 14, 2), (960, 7, 1), (64, 112, 2), (128, 56, 1), (128, 56, 2), (256, 28, 1), (256, 28, 2), (512, 14, 1),
    (512, 14, 2), (1024, 7, 1),
)  # fmt: skip


def set_modes(model: nn.Module, mode: str) -> nn.Module:
    """Training mode without dropout; with ``frozen`` every BatchNorm in eval mode."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if mode == "frozen" and isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    return model


def prepare(name: str, mode: str, form: str, files: Files = NO_FILES) -> Any:
    """The model in training mode in one form; weights and input memory are channels_last in all of them."""
    model = set_modes(files.load(name).to(memory_format=torch.channels_last), mode)
    if form == "mobilenet_ext":
        return set_modes(fuse(model), mode)
    return torch.compile(model) if form == "torch.compile" else model


class _Child:
    """A contender's process; one request, one line of JSON."""

    def __init__(self, arguments: list[str]) -> None:
        command = [sys.executable, "-m", "mobilenet_ext.bench.training", *arguments]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=child_environment()
        )

    def ask(self, what: str) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the training process ended with status {self._process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()


def measure(
    name: str,
    batches: list[int],
    size: int,
    threads: int,
    rounds: int,
    forms: tuple[str, ...],
    progress: Progress,
    files: Files = NO_FILES,
) -> list[dict[str, Any]]:
    """One row per mode, batch and form: median step, forward and backward in ms, saved and peak bytes, ratio."""
    rows: list[dict[str, Any]] = []
    for mode in MODES:
        for batch in batches:
            common = [name, str(batch), str(size), str(threads), mode]
            children = {form: _Child([*common, form, json.dumps(files)]) for form in forms}
            try:
                rows += _rounds(children, name, mode, batch, rounds, progress)
            finally:
                for child in children.values():
                    child.close()
    return rows


def _rounds(
    children: dict[str, _Child], name: str, mode: str, batch: int, rounds: int, progress: Progress
) -> Iterator[dict[str, Any]]:
    memory = {}
    for form, child in children.items():
        progress(f"{name} {mode} batch {batch}: {form}", 0.0)
        memory[form] = child.ask("memory")
        for _ in range(2):
            child.ask("step")
    times: dict[str, list[tuple[float, float]]] = {form: [] for form in children}
    for index in range(rounds):
        progress(f"{name} {mode} batch {batch}", index / rounds)
        for form, child in children.items():
            times[form].append(tuple(child.ask("step")))
    ours = [sum(pair) for pair in times.get("mobilenet_ext", [])]
    for form, pairs in times.items():
        steps = [sum(pair) for pair in pairs]
        row = {
            "model": name,
            "mode": mode,
            "batch": batch,
            "form": form,
            "step_ms": statistics.median(steps),
            "forward_ms": statistics.median(pair[0] for pair in pairs),
            "backward_ms": statistics.median(pair[1] for pair in pairs),
            **memory[form],
        }
        if ours:
            row["ratio"] = statistics.median(theirs / mine for theirs, mine in zip(steps, ours, strict=True))
        yield row


def depthwise_layers(batch: int, threads: int, rounds: int, progress: Progress) -> list[dict[str, Any]]:
    """Forward and backward of single depthwise layers through autograd, ours and ``conv2d``, channels_last.

    Beside the times what ours moves, in GB/s (each tensor read or written once), and what a copy of the input moves
    in the same rounds: these layers do little arithmetic for a byte, so memory is their limit.
    """
    from mobilenet_ext import ops

    torch.set_num_threads(threads)
    rows = []
    for index, (channels, size, stride) in enumerate(LAYERS):
        progress(f"depthwise {channels}x{size}x{size} stride {stride}", index / len(LAYERS))
        x = torch.randn(batch, channels, size, size).contiguous(memory_format=torch.channels_last).requires_grad_()
        weight = torch.randn(channels, 1, 3, 3, requires_grad=True)
        calls: dict[str, Callable[[], Tensor]] = {
            "ours": partial(ops.depthwise_conv2d, x, weight, stride=stride, padding=1),
            "torch": partial(F.conv2d, x, weight, stride=stride, padding=1, groups=channels),
        }
        g = torch.randn(calls["torch"]().shape).contiguous(memory_format=torch.channels_last)
        times: dict[str, list[tuple[float, float]]] = {form: [] for form in calls}
        copies: list[float] = []
        source, target = x.detach(), torch.empty_like(x)
        for turn in range(rounds + 2):
            start = time.perf_counter()
            target.copy_(source)
            copies.append(time.perf_counter() - start)
            # The caches hold what ran before: in turn the form itself and the other one.
            for form, call in sorted(calls.items(), reverse=turn % 2 == 1):
                start = time.perf_counter()
                y = call()
                middle = time.perf_counter()
                torch.autograd.grad(y, [x, weight], g)
                times[form].append((middle - start, time.perf_counter() - middle))
        row: dict[str, Any] = {"channels": channels, "size": size, "stride": stride, "batch": batch}
        row["copy_gbs"] = 2 * x.nbytes / statistics.median(copies[2:]) / 1e9
        moved = {"forward": x.nbytes + g.nbytes, "backward": 2 * x.nbytes + g.nbytes}
        for part, at in (("forward", 0), ("backward", 1)):
            mine, theirs = ([pair[at] for pair in times[form][2:]] for form in ("ours", "torch"))
            row[f"{part}_ms"] = 1e3 * statistics.median(mine)
            row[f"{part}_gbs"] = moved[part] / statistics.median(mine) / 1e9
            row[f"{part}_ratio"] = statistics.median(b / a for a, b in zip(mine, theirs, strict=True))
        rows.append(row)
    return rows


def gradient_errors(name: str, mode: str, size: int, batch: int = 4, files: Files = NO_FILES) -> dict[str, float]:
    """Relative RMS error over all parameters, each form against float64 with the masks that its own run took."""
    x, target = _data(batch, size)
    plain = set_modes(files.load(name), mode)
    fused = set_modes(fuse(plain), mode)
    masks: list[Tensor] = []
    for act in _activations(plain):
        act.inplace = False
        act.register_forward_hook(lambda module, inputs, output: masks.append((output > 0) & (output < 6)))
    found = _gradients(plain, x, target)
    errors = {"torch": _error(files.load(name), mode, x, target, masks, found)}
    backward.recorder = []
    try:
        found = _gradients(fused, x, target)
        recorded = backward.recorder
    finally:
        backward.recorder = None
    return {**errors, "ours": _error(files.load(name), mode, x, target, _in_order(recorded), found)}


def _activations(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, (nn.ReLU, nn.ReLU6))]


def _in_order(recorded: list[tuple[Block, str, Tensor]]) -> list[Tensor]:
    """Backward goes from the last block to the first, and through a block's images part by part."""
    blocks: dict[int, dict[str, list[Tensor]]] = {}
    for run, role, mask in recorded:
        blocks.setdefault(id(run), {}).setdefault(role, []).append(mask)
    return [torch.cat(parts[role]) for parts in reversed(blocks.values()) for role in ROLES if role in parts]


def _error(model: nn.Module, mode: str, x: Tensor, target: Tensor, masks: list[Tensor], found: list[Tensor]) -> float:
    exact = set_modes(model.double(), mode)
    remaining = iter(masks)

    def masked(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        (z,) = inputs
        return torch.where(next(remaining), z, z.detach()) + (output - z).detach()

    for act in _activations(exact):
        act.inplace = False
        act.register_forward_hook(masked)
    right = _gradients(exact, x.double(), target)
    norm = sum(float(g.square().sum()) for g in right) ** 0.5
    return sum(float((a.double() - b).square().sum()) for a, b in zip(found, right, strict=True)) ** 0.5 / norm


def _gradients(model: nn.Module, x: Tensor, target: Tensor) -> list[Tensor]:
    F.cross_entropy(model(x), target).backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


def _data(batch: int, size: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((batch, 3, size, size), generator=generator).contiguous(memory_format=torch.channels_last)
    return x, torch.randint(0, 1000, (batch,), generator=generator)


def _step(model: nn.Module, x: Tensor, target: Tensor) -> tuple[float, float]:
    model.zero_grad(set_to_none=True)
    start = time.perf_counter()
    loss = F.cross_entropy(model(x), target)
    middle = time.perf_counter()
    loss.backward()
    return 1e3 * (middle - start), 1e3 * (time.perf_counter() - middle)


def saved_bytes(model: nn.Module, x: Tensor, target: Tensor) -> int:
    """What the forward keeps for the backward beside the parameters and the input, by saved-tensor hooks."""
    known = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers(), x)}
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        F.cross_entropy(model(x), target).backward()
    return sum(found.values())


def _main(name: str, batch: str, size: str, threads: str, mode: str, form: str, files: str) -> None:
    from mobilenet_ext.bench.memory import _status

    torch.set_num_threads(int(threads))
    x, target = _data(int(batch), int(size))
    model = prepare(name, mode, form, Files(*json.loads(files)))
    for request in sys.stdin:
        if request.strip() == "memory":
            _step(model, x[:2], target[:2])
            # The peak first: memory that a full step has left with the allocator would hide it.
            model.zero_grad(set_to_none=True)
            Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark back to what is there now
            before = _status("VmRSS")
            _step(model, x, target)
            peak = _status("VmHWM") - before
            answer: Any = {"saved_bytes": saved_bytes(model, x, target), "peak_bytes": peak}
        else:
            answer = _step(model, x, target)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
