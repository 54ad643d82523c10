"""Runs cases: converts every contender once per batch, then, per number of threads, loads, verifies and times them."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mobilenet_ext._library import native
from mobilenet_ext.bench.accuracy import Reference
from mobilenet_ext.bench.cases import Case
from mobilenet_ext.bench.results import FAILED, MISSING, OURS, TIMED, WRONG, Entry, Result
from mobilenet_ext.bench.rivals.base import Rival, Runner
from mobilenet_ext.bench.statistics import paired_ratio, summarise
from mobilenet_ext.bench.timing import MIN_ROUNDS, Samples, Schedule, cache_flusher, interleave, peak_probe
from mobilenet_ext.spec import encode


@dataclass(frozen=True)
class Plan:
    """What to run a case with."""

    batches: Sequence[int]
    threads: Sequence[int]
    rivals: Sequence[Rival]
    schedule: Schedule
    cold: bool = False


Progress = Callable[[str, float], None]  # what goes on, and the part of the configuration that is done


def run(case: Case, plan: Plan, progress: Progress = lambda text, part: None) -> Iterator[Result]:
    """One result per batch and number of threads; torch's number of threads is restored afterwards."""
    with _threads_restored():
        for batch in plan.batches:
            example = case.example(batch)
            contenders = [r for r in (*case.ours, *plan.rivals) if batch >= r.smallest_batch]
            torch.set_num_threads(max(plan.threads))
            progress(f"{case.name}, batch {batch}: float64 reference", 0.0)
            reference = Reference.of(case.model, example)
            converted: list[tuple[Entry, Any]] = []
            for rival in contenders:
                progress(f"{case.name}, batch {batch}: converting for {rival.name}", 0.0)
                converted.append(_convert(rival, case, example))
            for threads in plan.threads:
                yield _configuration(case, plan, example, reference, contenders, converted, threads, progress)


def _configuration(
    case: Case,
    plan: Plan,
    example: Tensor,
    reference: Reference,
    contenders: Sequence[Rival],
    converted: Sequence[tuple[Entry, Any]],
    threads: int,
    progress: Progress,
) -> Result:
    torch.set_num_threads(threads)
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()  # what was compiled for other numbers of threads counts towards its recompile limit
    where = f"{case.name}, batch {len(example)}, {threads} thread{'s' if threads > 1 else ''}"
    entries: list[Entry] = []
    calls: dict[str, Runner] = {}
    kernels: dict[str, int] = {}
    with torch.inference_mode():
        for rival, (entry, artifact) in zip(contenders, converted, strict=True):
            progress(f"{where}: preparing {rival.name}", 0.0)
            if entry.status == TIMED:
                entry, call = _load(rival, entry, artifact, example, threads, reference)
                if call is not None:
                    calls[rival.name] = call
                    if rival.name == OURS:
                        kernels = _kernels(call)
            entries.append(entry)
        samples = interleave(
            calls,
            plan.schedule,
            peak_probe(threads),
            cache_flusher() if plan.cold else None,
            lambda part: progress(f"{where}: timing", part),
        )
    return Result(
        case.name,
        case.kind,
        tuple(example.shape),
        threads,
        native.isa(),
        len(example) * case.multiply_adds,
        case.bytes(len(example)),
        samples.peak,
        samples.rounds,
        len(samples.quiet),
        plan.cold,
        kernels,
        _choice(case, threads),
        tuple(_with_times(entry, samples) for entry in entries),
    )


def _convert(rival: Rival, case: Case, example: Tensor) -> tuple[Entry, Any]:
    entry = Entry(rival.name, rival.version, rival.setting, rival.is_ours, TIMED)
    start = time.perf_counter()
    try:
        # Not in inference mode: a copy of the model made there has parameters without version counters.
        with torch.no_grad():
            artifact = rival.convert(case.model, example)
    except Exception as error:  # whatever a rival raises is part of the report
        return _failure(entry, error), None
    return replace(entry, prepare_seconds=time.perf_counter() - start), artifact


def _load(
    rival: Rival, entry: Entry, artifact: Any, example: Tensor, threads: int, reference: Reference
) -> tuple[Entry, Runner | None]:
    start = time.perf_counter()
    try:
        call = rival.load(artifact, example, threads)
        result = call()
    except Exception as error:
        return _failure(entry, error), None
    seconds = (entry.prepare_seconds or 0.0) + time.perf_counter() - start
    accuracy = reference.judge(result, rival.is_ours)
    entry = replace(entry, relative_error=accuracy.relative, max_abs_error=accuracy.max_abs, prepare_seconds=seconds)
    if accuracy.reason:
        return replace(entry, status=WRONG, reason=accuracy.reason), None
    return entry, call


def _failure(entry: Entry, error: Exception) -> Entry:
    if isinstance(error, ModuleNotFoundError):
        return replace(entry, status=MISSING, reason=f"{error.name} is not installed; mobilenet_ext[bench] brings it")
    lines = str(error).strip().splitlines()
    return replace(entry, status=FAILED, reason=f"{type(error).__name__}: {lines[0] if lines else ''}")


def _with_times(entry: Entry, samples: Samples) -> Entry:
    if entry.name not in samples.calls or not samples.calls[entry.name]:
        return entry
    speedup = quiet_speedup = None
    if entry.name != OURS and samples.calls.get(OURS):
        theirs, ours = samples.per_round(entry.name), samples.per_round(OURS)
        speedup = paired_ratio(theirs, ours)
        if len(samples.quiet) >= MIN_ROUNDS:
            quiet_speedup = paired_ratio([theirs[i] for i in samples.quiet], [ours[i] for i in samples.quiet])
    timing = summarise(samples.calls[entry.name])
    return replace(entry, timing=timing, speedup=speedup, quiet_speedup=quiet_speedup)


def _kernels(call: Runner) -> dict[str, int]:
    """What one call ran, by kind and instruction set."""
    native.reset_counters()
    call()
    return {name: count for name, count in native.counters().items() if "." in name and count}


def _choice(case: Case, threads: int) -> str:
    """How the plan runs a single layer; empty for a network, which has a choice for every block."""
    if case.layer is None:
        return ""
    program, constants = encode((case.layer.item,))
    step = native.plan(program, constants, *case.layer.size, threads)[0]
    return f"{step['kind']}/{step['split']}"


@contextlib.contextmanager
def _threads_restored() -> Iterator[None]:
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
