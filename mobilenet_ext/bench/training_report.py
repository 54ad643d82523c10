"""Tables of the training measurements."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass
class TrainingReport:
    """What ``mobilenet-ext bench --training`` measured; plain values, as JSON has them."""

    machine: dict[str, Any]
    settings: dict[str, Any]
    steps: list[dict[str, Any]] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)
    layers: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> str:
        return json.dumps(vars(self), indent=2)

    @property
    def wrong(self) -> bool:
        """Whether a gradient of ours is more than twice as far off as PyTorch's."""
        return any(row["ours"] > 2 * row["torch"] for row in self.errors)

    def geometric_means(self) -> dict[str, float]:
        """Of the ratios of the depthwise layers, by direction."""
        if not self.layers:
            return {}
        return {
            part: math.exp(sum(math.log(row[f"{part}_ratio"]) for row in self.layers) / len(self.layers))
            for part in ("forward", "backward")
        }


def print_report(report: TrainingReport, console: Console) -> None:
    table = Table(title="Training step", caption="ratio: time over ours in the same round, median")
    for column in ("model", "BatchNorm", "batch", "form", "step ms", "forward", "backward", "ratio", "saved", "peak"):
        table.add_column(column, justify="left" if column in ("model", "BatchNorm", "form") else "right")
    for row in report.steps:
        ratio = f"{row['ratio']:.2f}" if "ratio" in row else ""
        times = (f"{row[name]:.0f}" for name in ("step_ms", "forward_ms", "backward_ms"))
        sizes = (f"{row[name] / 1e6:.0f} MB" for name in ("saved_bytes", "peak_bytes"))
        table.add_row(row["model"], row["mode"], str(row["batch"]), row["form"], *times, ratio, *sizes)
    console.print(table)
    for row in report.errors:
        console.print(
            f"{row['model']}, {row['mode']}: relative RMS error of all gradients against float64 with the masks of "
            f"the float32 run: ours {row['ours']:.2e}, PyTorch {row['torch']:.2e}"
        )
    if not report.layers:
        return
    table = Table(title="Depthwise layers, 3x3", caption="ratio: PyTorch's time over ours; copy: of the layer's input")
    for column in ("layer", "forward ms", "ratio", "GB/s", "backward ms", "ratio", "GB/s", "copy GB/s"):
        table.add_column(column, justify="right")
    for row in report.layers:
        name = f"{row['channels']} x {row['size']}^2 s{row['stride']}"
        cells = []
        for part in ("forward", "backward"):
            cells += [f"{row[f'{part}_ms']:.2f}", f"{row[f'{part}_ratio']:.2f}", f"{row[f'{part}_gbs']:.0f}"]
        cells.append(f"{row['copy_gbs']:.0f}")
        slower = min(row["forward_ratio"], row["backward_ratio"]) < 1
        table.add_row(name, *cells, style="red" if slower else None)
    console.print(table)
    means = report.geometric_means()
    console.print(f"geometric mean: forward {means['forward']:.2f}, backward {means['backward']:.2f}")
