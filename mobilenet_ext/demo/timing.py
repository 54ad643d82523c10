"""Timing several ways to compute the same thing against each other, on a machine that others may be using too."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils.benchmark import Timer

ROUND_SECONDS = 0.05  # about how long one contestant runs in one round


def interleaved(
    contestants: Mapping[str, Callable[[], Any]], rounds: int, threads: int, done: Callable[[], None]
) -> dict[str, list[float]]:
    """Seconds per call of every contestant in each round; all run in every round, and each round begins with another.

    What disturbs the machine for longer than a round thus disturbs all alike; compare them round by round.
    ``done`` is called after each round.
    """
    timers = {name: Timer("call()", globals={"call": call}, num_threads=threads) for name, call in contestants.items()}
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    with torch.inference_mode():
        repeats = {name: max(1, round(ROUND_SECONDS / timers[name].timeit(2).median)) for name in names}
        for index in range(rounds):
            first = index % len(names)
            for name in names[first:] + names[:first]:
                seconds[name].append(timers[name].timeit(repeats[name]).median)
            done()
    return seconds


def ratio(slower: list[float], faster: list[float]) -> tuple[float, float, float]:
    """The ratio of two contestants' times: its median over the rounds, lower and upper quartile."""
    ratios = [a / b for a, b in zip(slower, faster, strict=True)]
    if len(ratios) == 1:
        return ratios[0], ratios[0], ratios[0]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return middle, low, high
