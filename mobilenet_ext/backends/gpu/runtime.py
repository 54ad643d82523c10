"""Which candidate runs an item now, and the chain operators on a GPU.

``MOBILENET_EXT_GPU`` says how far kernels are trusted:

* ``check`` (default): at the first call of each (item, dtype, shape class) on a device the candidates run beside
  PyTorch's operators on the caller's tensors; wrong or slower ones are never used.  The verdict is kept on disk.
* ``trust``: the first candidate runs without a check.
* ``off``: PyTorch's operators run.

While a CUDA graph is captured nothing is checked, compiled or synchronised: an item that has a verdict and whose kernel
has run in this process runs as chosen, every other one in PyTorch.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mobilenet_ext.backends.gpu import gradients
from mobilenet_ext.backends.gpu.choices import Choices, shape_key
from mobilenet_ext.backends.gpu.gradients import Job, Results
from mobilenet_ext.backends.gpu.packing import PackedItem
from mobilenet_ext.backends.gpu.plans import BASELINE, Candidate, candidates, run_aten
from mobilenet_ext.backends.gpu.trial import Verdict, seconds_per_call, try_out, try_out_gradient
from mobilenet_ext.spec import BlockSpec, ChainItem

MODES = ("check", "trust", "off")


def mode() -> str:
    """The value of MOBILENET_EXT_GPU; ValueError if it is none of ``MODES``."""
    value = os.environ.get("MOBILENET_EXT_GPU", "check")
    if value not in MODES:
        raise ValueError(f"MOBILENET_EXT_GPU is {value!r}; allowed: {', '.join(MODES)}")
    return value


def is_capturing(x: Tensor) -> bool:
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def usable_backends(x: Tensor) -> tuple[str, ...]:
    """Names of the backends whose kernels may run on the device of ``x``, in order."""
    from mobilenet_ext.backends import cuda, triton

    if not x.is_cuda:  # the interpreter runs Triton kernels on CPU tensors; only tests come here
        from mobilenet_ext.backends.triton import common

        return ("triton",) if common.INTERPRETED else ()
    index = x.device.index or 0
    usable = []
    if cuda.device_reason(index) is None:
        usable.append("cuda")
    if triton.installed() is None and triton.device_reason(index) is None:
        usable.append("triton")
    return tuple(usable)


@dataclass(frozen=True)
class _Task:
    """What can be done by PyTorch or by a candidate, both called with ``arguments``; ``key`` is its class."""

    key: str
    image: Tensor
    arguments: tuple[Any, ...]
    baseline: Callable[..., Any]
    candidates: Callable[[], list[Candidate]]
    trial: Callable[[list[Candidate]], Verdict]
    label: str = ""  # before the candidate's name in the counters


class Runtime:
    """Verdicts and counters of one process; ``timer`` and what lists candidates are replaced by tests."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.choices: dict[torch.device, Choices] = {}
        self.warm: set[tuple[torch.device, str]] = set()
        self.counters: Counter[str] = Counter()
        self.last: dict[str, Verdict] = {}
        self.timer = seconds_per_call
        self.list_candidates = candidates
        self.list_gradients = gradients.candidates
        self.backends = usable_backends
        self.capturing = is_capturing

    def choices_of(self, device: torch.device) -> Choices:
        found = self.choices.get(device)
        if found is None:
            found = self.choices[device] = Choices(device)
        return found

    def run_item(self, packed: PackedItem, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """One item on ``x``: (N, C, H, W), or (N, features) for a linear item.

        ``shortcut`` is the input of the item before, for a block with ``residual_back``, which PyTorch runs.
        """
        item = packed.item
        if mode() == "off" or not isinstance(item, BlockSpec) or item.residual_back or x.numel() == 0:
            return self._count(BASELINE, run_aten(packed, x, shortcut))
        planar = x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last)
        key = shape_key(packed.item, x, planar)
        return self._run(
            _Task(
                key, x, (packed, x), run_aten, lambda: self.list_candidates(packed, x, self.backends(x)),
                lambda found: try_out(packed, x, found, self.timer),
            )
        )  # fmt: skip

    def run_gradient(self, job: Job) -> Results:
        """One gradient of a block, by the same rules; counted as its kind and the candidate."""
        image = job.image
        if mode() == "off" or image.numel() == 0 or job.g.numel() == 0:
            return self._count(f"{job.kind} {BASELINE}", job.baseline())
        return self._run(
            _Task(
                gradients.key(job), image, (job,), type(job).baseline,
                lambda: self.list_gradients(job, self.backends(image)),
                lambda found: try_out_gradient(job, found, self.timer), f"{job.kind} ",
            )
        )  # fmt: skip

    def _run(self, task: _Task) -> Any:
        """``task`` as its verdict says, which is made first where there is none."""
        key, x = task.key, task.image
        if self.capturing(x):
            return self._captured(task)
        found = task.candidates()
        if mode() == "trust":
            return self._trusted(task, found)
        verdict = self.choices_of(x.device).get(key)
        if verdict is None or (verdict.choice != BASELINE and _named(found, verdict.choice) is None):
            with self.lock:
                verdict = task.trial(found)
                self.choices_of(x.device).put(key, verdict)
        self.last[key] = verdict
        candidate = _named(found, verdict.choice)
        if candidate is None:
            return self._baseline(task)
        self.warm.add((x.device, key))
        return self._count(task.label + candidate.name, candidate.run(*task.arguments))

    def _captured(self, task: _Task) -> Any:
        verdict = self.last.get(task.key)
        if verdict is None or verdict.choice == BASELINE or (task.image.device, task.key) not in self.warm:
            return self._baseline(task)
        candidate = _named(task.candidates(), verdict.choice)
        if candidate is None:
            return self._baseline(task)
        return self._count(task.label + candidate.name, candidate.run(*task.arguments))

    def _trusted(self, task: _Task, found: list[Candidate]) -> Any:
        key = task.key
        failed = self.last[key].rejected if key in self.last else {}
        for candidate in found:
            if candidate.name in failed:
                continue
            try:
                y = candidate.run(*task.arguments)
            except Exception as error:  # cannot be compiled or launched here: the next one may
                failed[candidate.name] = f"{type(error).__name__}: {error}"
                continue
            self.last[key] = Verdict(candidate.name, rejected=failed)
            self.warm.add((task.image.device, key))
            return self._count(task.label + candidate.name, y)
        self.last[key] = Verdict(BASELINE, rejected=failed)
        return self._baseline(task)

    def _baseline(self, task: _Task) -> Any:
        return self._count(task.label + BASELINE, task.baseline(*task.arguments))

    def _count(self, name: str, y: Any) -> Any:
        self.counters[name] += 1
        return y

    def verdict_on(self, packed_item: ChainItem, x: Tensor) -> Verdict | None:
        """The last verdict on an item for an image like ``x``, for reports."""
        planar = x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last)
        return self.last.get(shape_key(packed_item, x, planar))


runtime = Runtime()


def _named(found: list[Candidate], name: str) -> Candidate | None:
    return next((candidate for candidate in found if candidate.name == name), None)


def run_packed(packed: list[PackedItem], x: Tensor, follow_input: bool) -> Tensor:
    """A packed chain on ``x`` (N, C, H, W) of its dtype and device; the result lies as the CPU's kernels lay it out."""
    planar = follow_input and (x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last))
    y = before = x
    for packed_item in packed:
        entry = y
        item = packed_item.item
        y = runtime.run_item(packed_item, y, before if isinstance(item, BlockSpec) and item.residual_back else None)
        before = entry
    if y.dim() == 4:
        y = y.contiguous() if planar else y.contiguous(memory_format=torch.channels_last)
        if y.numel() and 1 in y.shape:
            y = exact_strides(y, planar)
    return y.clone() if y is x else y


def exact_strides(y: Tensor, planar: bool) -> Tensor:
    """``contiguous`` keeps whatever strides dimensions of one element have; the fake kernel promises those of empty."""
    layout = torch.contiguous_format if planar else torch.channels_last
    wanted = torch.empty_like(y, device="meta", memory_format=layout).stride()
    return y if y.stride() == wanted else y.as_strided(y.shape, wanted)
