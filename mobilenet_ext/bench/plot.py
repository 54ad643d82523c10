"""One picture of a report: bars against the rivals, time per image over batch size, roofline of all layers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mobilenet_ext.bench.cases import NETWORK
from mobilenet_ext.bench.results import OURS, Report, Result
from mobilenet_ext.bench.statistics import median

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OURS_COLOUR, _OTHER_COLOUR = "#c0392b", "#95a5a6"


def write(report: Report, path: Path) -> None:
    """Write the panels that the report has figures for; the suffix of ``path`` decides the format.

    ModuleNotFoundError without matplotlib (extra ``plot``); ValueError if there is nothing to draw.
    """
    from matplotlib.figure import Figure

    networks = [result for result in report.results if result.kind == NETWORK and result.ours]
    layers = [result for result in report.results if result.kind != NETWORK and result.ours]
    curves = [group for group in _by_configuration(networks) if len({result.batch for result in group}) > 1]
    panels: list[Callable[[Axes], None]] = []
    if networks:
        panels.append(lambda axes: _bars(axes, networks))
    if curves:
        panels.append(lambda axes: _curves(axes, curves))
    if layers:
        panels.append(lambda axes: _roofline(axes, layers, report.machine.get("memory_bandwidth", 0.0)))
    if not panels:
        raise ValueError("there is nothing to draw: none of our results was timed")
    # A Figure of its own, so that no display and no global state is needed.
    figure = Figure(figsize=(7 * len(panels), 5.5), layout="constrained")
    for index, panel in enumerate(panels, 1):
        panel(figure.add_subplot(1, len(panels), index))
    figure.suptitle(f"{report.machine['cpu']}, torch {report.machine['torch']}, fp32", fontsize=9)
    figure.savefig(path, dpi=150)


def memory_bandwidth() -> float:
    """Bytes per second, read and written, of a copy between buffers beyond the caches, on torch's threads."""
    source, target = torch.ones(2**26), torch.zeros(2**26)
    rates = []
    for _ in range(5):
        start = time.perf_counter()
        target.copy_(source)
        rates.append(2 * source.numel() * 4 / (time.perf_counter() - start))
    return median(rates)


def _by_configuration(results: Sequence[Result]) -> list[list[Result]]:
    groups: dict[Any, list[Result]] = {}
    for result in results:
        groups.setdefault((result.case, result.threads), []).append(result)
    return list(groups.values())


def _label(result: Result) -> str:
    return f"{result.case}\nbatch {result.batch}, {result.threads} thr."


def _bars(axes: Axes, results: Sequence[Result]) -> None:
    """Milliseconds per image of every contender, with our factor over it."""
    names = list(dict.fromkeys(e.name for result in results for e in result.entries if e.timing))
    height = 0.85 / max(len(names), 1)
    for index, name in enumerate(names):
        for row, result in enumerate(results):
            entry = next((e for e in result.entries if e.name == name and e.timing), None)
            if entry is None:
                continue
            where, value = row + (index - (len(names) - 1) / 2) * height, result.milliseconds(entry)
            axes.barh(where, value, height, color=_OURS_COLOUR if name == OURS else _OTHER_COLOUR)
            factor = f"  {name}" + (f" {entry.speedup.median:.2f}x" if entry.speedup else "")
            axes.text(value, where, factor, va="center", fontsize=6)
    axes.set_yticks(range(len(results)), [_label(result) for result in results], fontsize=7)
    axes.invert_yaxis()
    axes.margins(x=0.25)
    axes.set_xlabel("ms per image (median); behind a name: how many times faster ours is")
    axes.set_title("Whole networks")


def _curves(axes: Axes, groups: Sequence[Sequence[Result]]) -> None:
    for group in groups:
        for name in dict.fromkeys(e.name for result in group for e in result.entries if e.timing):
            points = [(r.batch, r.milliseconds(e)) for r in group for e in r.entries if e.name == name and e.timing]
            label = f"{name}, {group[0].case}, {group[0].threads} thr."
            style = {"linewidth": 2.2, "color": _OURS_COLOUR} if name == OURS else {"linewidth": 0.9}
            axes.plot(*zip(*sorted(points), strict=True), marker="o", markersize=3, label=label, **style)
    axes.set_xscale("log", base=2)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("batch size")
    axes.set_ylabel("ms per image")
    axes.legend(fontsize=6)
    axes.set_title("Time per image over batch size")


def _roofline(axes: Axes, results: Sequence[Result], bandwidth: float) -> None:
    """A point per layer: rate over the multiply-adds per byte that has to move at least."""
    for threads in sorted({result.threads for result in results}):
        group = [result for result in results if result.threads == threads]
        peak = max(result.peak for result in group) / 1e9
        intensity = [2 * result.multiply_adds / result.bytes for result in group]
        rates = [result.rate(result.ours) / 1e9 for result in group if result.ours]
        points = axes.scatter(intensity, rates, s=14, label=f"{threads} thr.")
        axes.axhline(peak, color=points.get_facecolor()[0], linewidth=0.8, linestyle="--")
        axes.text(max(intensity), peak, f"FMA peak {peak:.0f}", fontsize=6, ha="right", va="bottom")
    if bandwidth:
        low, high = axes.get_xlim()
        top = max(result.peak for result in results)
        ends = [max(low, 0.25), min(max(high, 1.0), top / bandwidth)]
        axes.plot(ends, [bandwidth * end / 1e9 for end in ends], "k:", linewidth=0.8)
        axes.text(ends[0], bandwidth * ends[0] / 1e9, f"memory {bandwidth / 1e9:.0f} GB/s", fontsize=6)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("FLOP per byte of input, output and weights")
    axes.set_ylabel("GFLOP/s")
    axes.legend(fontsize=6)
    axes.set_title("Roofline of the layers")
