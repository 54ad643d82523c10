"""The figures of a benchmark and their JSON form."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any

from mobilenet_ext.bench.statistics import Interval, Timing

SCHEMA_VERSION = 1
OURS = "mobilenet_ext"
TIMED, WRONG, MISSING, FAILED = "timed", "wrong", "missing", "failed"


@dataclass(frozen=True)
class Entry:
    """One contender in one configuration.

    ``status`` is 'timed', 'wrong' (its result was, so it was not timed), 'missing' (not installed) or 'failed', and
    ``reason`` says why for all but the first.  ``prepare_seconds`` is the time to convert, compile and load.
    ``speedup`` is how many times faster we are: its time over ours, paired by round; ``quiet_speedup`` the same over
    the rounds in which no neighbour took part of the machine, where there were enough.
    """

    name: str
    version: str
    setting: str
    is_ours: bool
    status: str
    reason: str = ""
    relative_error: float | None = None
    max_abs_error: float | None = None
    prepare_seconds: float | None = None
    timing: Timing | None = None
    speedup: Interval | None = None
    quiet_speedup: Interval | None = None


@dataclass(frozen=True)
class Result:
    """One case at one batch size and number of threads; ``multiply_adds`` and ``bytes`` are those of the whole batch.

    ``peak`` is the highest FMA rate in FLOP/s that ``threads`` cores showed in these rounds; in ``quiet_rounds`` of
    them it was nearly reached before and after.  ``kernels`` counts what one call of ours ran, as 'block.avx512';
    ``choice`` is how a single layer is planned: as a whole block or one convolution, and what its threads split.
    """

    case: str
    kind: str
    shape: tuple[int, ...]
    threads: int
    isa: str
    multiply_adds: int
    bytes: int
    peak: float
    rounds: int
    quiet_rounds: int
    cold: bool
    kernels: dict[str, int]
    choice: str
    entries: tuple[Entry, ...]

    @property
    def batch(self) -> int:
        return self.shape[0]

    @property
    def ours(self) -> Entry | None:
        """The entry that everything else is compared with, None if it was not timed."""
        return next((entry for entry in self.entries if entry.name == OURS and entry.timing), None)

    @property
    def losses(self) -> tuple[Entry, ...]:
        """The rivals that are faster than we are, by the median of the ratios."""
        return tuple(e for e in self.entries if not e.is_ours and e.speedup and e.speedup.median < 1)

    def rate(self, entry: Entry) -> float:
        """FLOP/s, two for a multiply-add; 0 for what was not timed."""
        return 2 * self.multiply_adds / entry.timing.p50 if entry.timing else 0.0

    def share(self, entry: Entry) -> float:
        """Of the FMA peak."""
        return self.rate(entry) / self.peak if self.peak else 0.0

    def milliseconds(self, entry: Entry) -> float:
        """Per image, the median call."""
        return 1e3 * entry.timing.p50 / self.batch if entry.timing else math.nan


@dataclass
class Report:
    """Everything that one run of the command measured; ``notes`` are cases that could not be run, and why."""

    machine: dict[str, Any]
    settings: dict[str, Any]
    results: list[Result] = field(default_factory=list)
    startup: dict[str, Any] = field(default_factory=dict)
    overhead: list[dict[str, Any]] = field(default_factory=list)
    memory: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def wrong(self) -> bool:
        """Whether any of our own results was wrong."""
        return any(e.is_ours and e.status in (WRONG, FAILED) for result in self.results for e in result.entries)

    def to_json(self) -> str:
        """The report with the derived figures beside the measured ones; no NaN and no infinity in it."""
        results = []
        for result in self.results:
            content = {**asdict(result), "batch": result.batch}
            for entry, values in zip(result.entries, content["entries"], strict=True):
                values["milliseconds_per_image"] = result.milliseconds(entry)
                values["share_of_peak"] = result.share(entry)
            results.append(content)
        fields = {**vars(self), "results": results}
        return json.dumps(_finite({"schema": SCHEMA_VERSION, **fields}), indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
