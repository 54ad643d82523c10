"""The rounds: every contender once per round, several calls each, in rotated order, with a probe of the FMA peak."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch

from mobilenet_ext._library import native
from mobilenet_ext.bench.statistics import median

MIN_ROUNDS = 5
_MIN_CALLS, _MAX_CALLS = 3, 2000
_WARM_SECONDS = 0.01
_PROBE_SECONDS = 0.01
_QUIET_SHARE = 0.95  # of the highest peak
_FLUSH_LIMIT = 256 * 2**20  # bytes; enough where a virtual machine reports the cache of a whole socket

Call = Callable[[], object]


@dataclass(frozen=True)
class Schedule:
    """How long to measure.

    ``rounds`` is their exact number; None means as many as ``seconds`` allow, at least ``MIN_ROUNDS``.  ``slot`` is
    the time in seconds that one contender's calls of one round should take, ``settle`` the pause before them, in which
    the threads of the one before stop spinning.
    """

    rounds: int | None = None
    seconds: float = 4.0
    slot: float = 0.05
    settle: float = 0.03


@dataclass
class Samples:
    """Seconds of every call, by contender and round; the FMA peak in FLOP/s before each round and after the last."""

    calls: dict[str, list[list[float]]]
    peaks: list[float] = field(default_factory=list)

    def per_round(self, name: str) -> list[float]:
        """The median call of each round, in seconds."""
        return [median(calls) for calls in self.calls[name]]

    @property
    def peak(self) -> float:
        """The highest peak of all rounds, in FLOP/s; 0 without a probe."""
        return max(self.peaks, default=0.0)

    @property
    def rounds(self) -> int:
        """How many were measured."""
        return max(0, len(self.peaks) - 1)

    @property
    def quiet(self) -> list[int]:
        """The rounds in which the machine was ours: nearly the highest peak before and after.  None without a probe.

        Neighbours on a shared machine take part of a core's arithmetic, and that shows in the probe, which knows
        nothing of the contenders.
        """
        enough = _QUIET_SHARE * self.peak
        return [i for i in range(self.rounds) if min(self.peaks[i : i + 2]) >= enough > 0]


def interleave(
    contenders: Mapping[str, Call],
    schedule: Schedule,
    probe: Callable[[], float] | None = None,
    flush: Call | None = None,
    progress: Callable[[float], None] = lambda done: None,
    clock: Callable[[], float] = time.perf_counter,
    pause: Callable[[float], None] = time.sleep,
) -> Samples:
    """Time the contenders; ``progress`` gets the part done, from 0 to 1.

    With ``flush`` every timed call starts after it, for figures with cold caches.
    """
    samples = Samples({name: [] for name in contenders})
    names = list(contenders)
    start = clock()
    rounds = 0
    with _no_collection():
        while not _done(rounds, clock() - start, schedule):
            pause(schedule.settle)
            samples.peaks.append(probe() if probe else 0.0)
            rounds += 1
            shift = rounds % len(names) if names else 0
            for name in names[shift:] + names[:shift]:
                pause(schedule.settle)
                samples.calls[name].append(_slot(contenders[name], schedule.slot, flush, clock))
            progress(_part(rounds, clock() - start, schedule))
        samples.peaks.append(probe() if probe else 0.0)
    return samples


def peak_probe(threads: int, seconds: float = _PROBE_SECONDS) -> Callable[[], float]:
    """A probe that measures the FMA rate of ``threads`` cores at once, in FLOP/s, for about ``seconds``."""

    def probe() -> float:
        if threads == 1:
            return float(native.peak_flops(seconds))
        with ThreadPoolExecutor(threads) as pool:
            return sum(pool.map(native.peak_flops, [seconds] * threads))

    return probe


def cache_flusher() -> Call:
    """A call that drives everything else out of the caches of all cores that torch uses."""
    sizes = native.cache_sizes()
    size = min(2 * max(sizes["l3"], sizes["l2"], 2**20), _FLUSH_LIMIT)
    buffer = torch.zeros(size // 4)
    return lambda: buffer.add_(1.0)


def _slot(call: Call, seconds: float, flush: Call | None, clock: Callable[[], float]) -> list[float]:
    """Warm up, then time enough calls to fill ``seconds``, flushes included."""
    warm_start = clock()
    while True:
        start = clock()
        if flush is not None:
            flush()
        call()
        end = clock()
        if end - warm_start >= _WARM_SECONDS:
            break
    count = max(_MIN_CALLS, min(_MAX_CALLS, round(seconds / max(end - start, 1e-9))))
    calls = []
    for _ in range(count):
        if flush is not None:
            flush()
        start = clock()
        call()
        calls.append(clock() - start)
    return calls


def _done(rounds: int, elapsed: float, schedule: Schedule) -> bool:
    if schedule.rounds is not None:
        return rounds >= schedule.rounds
    return rounds >= MIN_ROUNDS and elapsed >= schedule.seconds


def _part(rounds: int, elapsed: float, schedule: Schedule) -> float:
    if schedule.rounds is not None:
        return rounds / schedule.rounds
    return min(1.0, rounds / MIN_ROUNDS, elapsed / schedule.seconds if schedule.seconds else 1.0)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Python's garbage collector stays out of the timed calls."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
