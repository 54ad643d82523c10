"""One trial: every candidate beside PyTorch on the caller's own tensors, and a verdict on each.

A candidate is kept when it is right (both conditions of :mod:`mobilenet_ext.tolerance`, on the first and last images of
the batch) and faster than PyTorch's operators.  The fastest of those is the choice; otherwise PyTorch is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mobilenet_ext import tolerance
from mobilenet_ext.backends.gpu.gradients import Job, Results
from mobilenet_ext.backends.gpu.packing import PackedItem
from mobilenet_ext.backends.gpu.plans import BASELINE, Candidate, compared_images, run_aten
from mobilenet_ext.backends.gpu.precision import some_tf32

_REPEATS = 5
_NO_MEMORY = "no memory left on the device for the check; it is made again in the next process"
Timer = Callable[[Callable[[], Tensor]], float]


@dataclass
class Verdict:
    """``choice`` is a candidate's name or ``aten``; ``seconds`` per right candidate; ``rejected`` has the reasons.

    Not ``lasting`` is one that memory was too short for: it holds in this process and is not written to disk.
    """

    choice: str
    seconds: dict[str, float] = field(default_factory=dict)
    rejected: dict[str, str] = field(default_factory=dict)
    lasting: bool = True

    @property
    def why(self) -> str:
        """One sentence for reports."""
        if self.choice != BASELINE:
            if BASELINE not in self.seconds:
                return "trusted without a check (MOBILENET_EXT_GPU=trust)"
            ratio = self.seconds[BASELINE] / self.seconds[self.choice]
            return f"agrees with PyTorch and is {ratio:.2f} times as fast"
        if self.rejected:
            name, reason = next(iter(self.rejected.items()))
            return f"PyTorch; {name}: {reason}" + (
                f" ({len(self.rejected)} rejected)" if len(self.rejected) > 1 else ""
            )
        if len(self.seconds) > 1:
            return "PyTorch; no kernel here is faster"
        return "PyTorch; no kernel takes this item"


def seconds_per_call(call: Callable[[], Tensor]) -> float:
    """The median of a few runs, by CUDA events where the result is on a GPU; synchronises."""
    result = call()
    times = []
    if not result.is_cuda:
        for _ in range(_REPEATS):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        return sorted(times)[_REPEATS // 2]
    with torch.cuda.device(result.device):
        for _ in range(_REPEATS):
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            before.record()
            call()
            after.record()
            after.synchronize()
            times.append(before.elapsed_time(after) / 1e3)
    return sorted(times)[_REPEATS // 2]


def try_out(packed: PackedItem, x: Tensor, found: Sequence[Candidate], timer: Timer = seconds_per_call) -> Verdict:
    """The verdict on ``found`` for ``x`` (N, C, H, W) , N at least 1; never to be called under graph capture."""
    verdict = Verdict(BASELINE)
    if not found:
        return verdict
    index = compared_images(x)
    few = x.index_select(0, index)
    try:
        reference, rms, limit = tolerance.expectation((packed.item,), few, packed.sources, x.dtype)
        if some_tf32(x.dtype):
            # TF32 has the mantissa of fp16; PyTorch's own error above then shows it as well, where PyTorch uses it.
            limit = tolerance.bound((packed.item,), few, packed.sources, torch.float16)
    except torch.OutOfMemoryError:
        return _out_of_memory(verdict)

    def check(y: Tensor) -> str | None:
        result = tolerance.compare(y.index_select(0, index), reference, rms, limit, x.dtype)
        return None if result.ok else _disagreement(result)

    _judge(verdict, found, (packed, x), run_aten, check, timer)
    return verdict


def try_out_gradient(job: Job, found: Sequence[Candidate], timer: Timer = seconds_per_call) -> Verdict:
    """The verdict on ``found`` for one gradient; as :func:`try_out`, sums over the batch as a whole."""
    verdict = Verdict(BASELINE)
    if not found:
        return verdict
    try:
        expected = job.expected()
    except torch.OutOfMemoryError:
        return _out_of_memory(verdict)

    def check(results: Results) -> str | None:
        for y, wanted in zip(results, expected, strict=True):
            y = y if wanted.images is None else y[wanted.images]
            result = tolerance.compare(y, wanted.reference, wanted.rms, wanted.limit, y.dtype)
            if not result.ok:
                return _disagreement(result)
        return None

    _judge(verdict, found, (job,), type(job).baseline, check, timer)
    return verdict


def _judge(
    verdict: Verdict,
    found: Sequence[Candidate],
    arguments: tuple[Any, ...],
    baseline: Callable[..., Any],
    check: Callable[[Any], str | None],
    timer: Timer,
) -> None:
    """Time the baseline and every candidate that ``check`` has nothing against; the fastest is the choice."""

    def seconds(run: Callable[..., Any]) -> float:
        def call() -> Tensor:
            y = run(*arguments)
            return y[0] if isinstance(y, tuple) else y

        return timer(call)

    verdict.seconds[BASELINE] = seconds(baseline)
    for candidate in found:
        try:
            reason = check(candidate.run(*arguments))
            if reason is None:
                verdict.seconds[candidate.name] = seconds(candidate.run)
            else:
                verdict.rejected[candidate.name] = reason
        except torch.OutOfMemoryError:
            verdict.rejected[candidate.name] = _NO_MEMORY
            verdict.lasting = False
        except Exception as error:  # a kernel that this GPU cannot compile or launch is one that is not used
            first_line = str(error).partition("\n")[0]
            verdict.rejected[candidate.name] = f"{type(error).__name__}: {first_line}"
    verdict.choice = min(verdict.seconds, key=verdict.seconds.__getitem__)


def _out_of_memory(verdict: Verdict) -> Verdict:
    """PyTorch for now: the check needs float64 copies that there is no room for at present."""
    verdict.rejected["check"] = _NO_MEMORY
    verdict.lasting = False
    return verdict


def _disagreement(result: tolerance.Comparison) -> str:
    ratio = "" if result.worst_ratio is None else f", {result.worst_ratio:.2g} times the bound"
    return f"wrong by {result.max_abs:.3g}{ratio}, RMS {result.rms:.3g} where PyTorch has {result.rms_torch:.3g}"
