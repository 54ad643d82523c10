"""What a benchmark reports: medians of paired ratios with a bootstrap interval, and percentiles of single calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

_RESAMPLES = 2000
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A median and the ends of its 95 % bootstrap interval."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Timing:
    """Seconds per call, over ``calls`` calls of all rounds."""

    minimum: float
    p50: float
    p99: float
    calls: int


def median(values: Sequence[float]) -> float:
    """ValueError if there are none."""
    return percentile(values, 50)


def percentile(values: Sequence[float], percent: float) -> float:
    """Linear between neighbours; ValueError if there are no values."""
    if not values:
        raise ValueError("values is empty; a percentile needs at least one")
    return torch.tensor(values, dtype=torch.float64).quantile(percent / 100).item()


def paired_ratio(numerators: Sequence[float], denominators: Sequence[float], seed: int = 0) -> Interval:
    """Median of ``numerators[i] / denominators[i]`` and its percentile bootstrap interval, rounds resampled.

    Both figures of a pair come from one round, so that what slows a whole round down cancels.  The same arguments
    give the same interval.  ValueError unless both have the same length, at least one.
    """
    if len(numerators) != len(denominators) or not numerators:
        raise ValueError(f"{len(numerators)} numerators and {len(denominators)} denominators; allowed: equally many")
    ratios = torch.tensor(numerators, dtype=torch.float64) / torch.tensor(denominators, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    resampled = ratios[torch.randint(len(ratios), (_RESAMPLES, len(ratios)), generator=generator)]
    medians = resampled.quantile(0.5, dim=1)
    tail = (1 - _CONFIDENCE) / 2
    low, high = medians.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Interval(ratios.quantile(0.5).item(), low, high)


def summarise(rounds: Sequence[Sequence[float]]) -> Timing:
    """``rounds`` holds the seconds of each call, one list per round; ValueError if there is no call."""
    calls = [seconds for calls in rounds for seconds in calls]
    return Timing(min(calls, default=0.0), percentile(calls, 50), percentile(calls, 99), len(calls))
