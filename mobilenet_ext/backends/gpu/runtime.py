"""Which candidate runs an item now, and the chain operators on a GPU.

``MOBILENET_EXT_GPU`` says how far kernels are trusted:

* ``check`` (default): at the first call of each (item, dtype, shape class) on a device the candidates run beside
  PyTorch's operators on the caller's tensors; wrong or slower ones are never used.  The verdict is kept on disk.
* ``trust``: the first candidate runs without a check.
* ``off``: PyTorch's operators run.

While a CUDA graph is captured nothing is checked, compiled or synchronised: what has run before in this process, with
the same sizes, strides and alignment, runs as decided then, and everything else in PyTorch.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mobilenet_ext.backends.gpu import gradients
from mobilenet_ext.backends.gpu.choices import Choices
from mobilenet_ext.backends.gpu.classes import is_planar, shape_key
from mobilenet_ext.backends.gpu.gradients import Job, Results
from mobilenet_ext.backends.gpu.packing import PackedItem
from mobilenet_ext.backends.gpu.plans import BASELINE, Candidate, candidates, run_aten
from mobilenet_ext.backends.gpu.precision import tf32_switches
from mobilenet_ext.backends.gpu.trial import Verdict, seconds_per_call, try_out, try_out_gradient
from mobilenet_ext.spec import BlockSpec, ChainItem

MODES = ("check", "trust", "off")
_ALIGNMENT = 16  # bytes: what Triton compiles for, and whole blocks need
_MOST_DECISIONS = 4096  # of a process; with more sizes than that they are made again from the verdicts


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


def placement(x: Tensor) -> tuple[Hashable, ...]:
    """Everything about ``x`` that decides which code a kernel is compiled to and run as, beside what it computes."""
    return x.device, x.dtype, x.shape, x.stride(), x.data_ptr() % _ALIGNMENT, tf32_switches(x.dtype)


@dataclass(frozen=True)
class _Task:
    """What can be done by PyTorch or by a candidate, both called with ``arguments``; ``key`` is its class."""

    key: str
    device: torch.device
    arguments: tuple[Any, ...]
    baseline: Callable[..., Any]
    candidates: Callable[[], list[Candidate]]
    trial: Callable[[list[Candidate]], Verdict]
    label: str = ""  # before the candidate's name in the counters


class Runtime:
    """Verdicts, decisions and counters of one process; ``timer`` and what lists candidates are replaced by tests.

    A verdict is on a class of sizes and is kept on disk.  A decision, what to run for exactly these sizes, is what the
    second call takes: it is made once the candidate, or PyTorch, has run them.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.choices: dict[torch.device, Choices] = {}
        self.decided: dict[Hashable, Candidate] = {}
        self.counters: Counter[str] = Counter()
        self.last: dict[tuple[torch.device, str], Verdict] = {}
        self.timer = seconds_per_call
        self.list_candidates = candidates
        self.list_gradients = gradients.candidates
        self.backends = usable_backends
        self.capturing = is_capturing

    def choices_of(self, device: torch.device) -> Choices:
        found = self.choices.get(device)
        if found is None:
            found = self.choices.setdefault(device, Choices(device))  # one for all threads
        return found

    def run_item(self, packed: PackedItem, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """One item on ``x``: (N, C, H, W), or (N, features) for a linear item.

        ``shortcut`` is the input of the item before, for a block with ``residual_back``, which PyTorch runs.
        """
        item, how = packed.item, mode()
        if how == "off" or not isinstance(item, BlockSpec) or item.residual_back or x.numel() == 0:
            return self._count(BASELINE, run_aten(packed, x, shortcut))
        signature = (packed.key, how, *placement(x))
        if (decided := self.decided.get(signature)) is not None:
            return self._count(decided.name, decided.run(packed, x))
        task = _Task(
            shape_key(item, x), x.device, (packed, x), run_aten,
            lambda: self.list_candidates(packed, x, self.backends(x)),
            lambda found: try_out(packed, x, found, self.timer),
        )  # fmt: skip
        return self._decide(signature, task, how, self.capturing(x))

    def run_gradient(self, job: Job) -> Results:
        """One gradient of a block, by the same rules; counted as its kind and the candidate."""
        image, how, label = job.image, mode(), f"{job.kind} "
        if how == "off" or image.numel() == 0 or job.g.numel() == 0:
            return self._count(label + BASELINE, job.baseline())
        signature = (label, job.detail, how, placement(image), placement(job.g))
        if (decided := self.decided.get(signature)) is not None:
            return self._count(label + decided.name, decided.run(job))
        task = _Task(
            gradients.key(job), image.device, (job,), type(job).baseline,
            lambda: self.list_gradients(job, self.backends(image)),
            lambda found: try_out_gradient(job, found, self.timer), label,
        )  # fmt: skip
        return self._decide(signature, task, how, self.capturing(image))

    def _decide(self, signature: Hashable, task: _Task, how: str, capturing: bool) -> Any:
        """Run ``task`` as its verdict says, which is made first where there is none, and remember what ran."""
        if capturing:
            return self._count(task.label + BASELINE, task.baseline(*task.arguments))
        candidate, result = (self._trusted if how == "trust" else self._checked)(task)
        if len(self.decided) >= _MOST_DECISIONS:
            self.decided.clear()
        self.decided[signature] = candidate
        return self._count(task.label + candidate.name, result)

    def _checked(self, task: _Task) -> tuple[Candidate, Any]:
        found, choices = task.candidates(), self.choices_of(task.device)

        def known() -> Verdict | None:
            """The verdict, unless it names a candidate that there is no longer."""
            verdict = choices.get(task.key)
            lost = verdict is not None and verdict.choice != BASELINE and _named(found, verdict.choice) is None
            return None if lost else verdict

        verdict = known()
        if verdict is None:
            with self.lock:
                verdict = known()  # another thread may have made it meanwhile
                if verdict is None:
                    verdict = task.trial(found)
                    choices.put(task.key, verdict)
        self.last[task.device, task.key] = verdict
        candidate = _named(found, verdict.choice) or Candidate(BASELINE, task.baseline)
        return candidate, candidate.run(*task.arguments)

    def _trusted(self, task: _Task) -> tuple[Candidate, Any]:
        before = self.last.get((task.device, task.key))
        failed = {} if before is None else before.rejected
        for candidate in task.candidates():
            if candidate.name in failed:
                continue
            try:
                result = candidate.run(*task.arguments)
            except Exception as error:  # cannot be compiled or launched here: the next one may
                failed[candidate.name] = f"{type(error).__name__}: {error}"
                continue
            self.last[task.device, task.key] = Verdict(candidate.name, rejected=failed)
            return candidate, result
        self.last[task.device, task.key] = Verdict(BASELINE, rejected=failed)
        return Candidate(BASELINE, task.baseline), task.baseline(*task.arguments)

    def _count(self, name: str, y: Any) -> Any:
        self.counters[name] += 1
        return y

    def verdicts(self) -> Iterator[tuple[str, Verdict]]:
        """Key and verdict of everything that this process ran, for reports; GPUs one after the other."""
        for (_, key), verdict in list(self.last.items()):
            yield key, verdict

    def verdict_on(self, item: ChainItem, x: Tensor) -> Verdict | None:
        """The last verdict on an item for an image like ``x``, for reports."""
        return self.last.get((x.device, shape_key(item, x)))


runtime = Runtime()


def _named(found: list[Candidate], name: str) -> Candidate | None:
    return next((candidate for candidate in found if candidate.name == name), None)


def run_packed(packed: list[PackedItem], x: Tensor, follow_input: bool) -> Tensor:
    """A packed chain on ``x`` (N, C, H, W) of its dtype and device; the result lies as the CPU's kernels lay it out."""
    planar = follow_input and is_planar(x)
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
