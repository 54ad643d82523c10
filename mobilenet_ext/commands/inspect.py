"""``mobilenet-ext inspect MODEL``: shapes, arithmetic, bytes and dead depthwise channels of every block."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mobilenet_ext.commands import options
from mobilenet_ext.commands.arguments import positive

if TYPE_CHECKING:
    from rich.table import Table

    from mobilenet_ext.inspection import BlockInspection, Inspection

DESCRIPTION = (
    "Per block of one image: shapes, multiply-adds, the hidden bytes that fusing keeps out of memory, weight bytes "
    "after folding, bytes moved fused over unfused (one kernel per convolution), and depthwise channels whose folded "
    "kernel is dead."
)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "inspect", help="shapes, bytes and dead channels of every block", description=DESCRIPTION
    )
    options.add_model(parser)
    parser.add_argument("--size", type=positive, metavar="PIXELS", help="side of the image (default: the model's own)")
    parser.add_argument(
        "--dead-threshold",
        type=_fraction,
        default=1e-3,
        metavar="R",
        help="a channel is dead at or below this share of its layer's largest weight; 0: exact zeros (default: 0.001)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=run)


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 up to, but not including, 1")
    return value


def run(args: argparse.Namespace) -> int:
    """0, or 1 if nothing in the model can be fused."""
    from dataclasses import asdict

    from rich.console import Console

    from mobilenet_ext import loading
    from mobilenet_ext.inspection import inspect_model

    with Console(stderr=True).status(f"inspecting {args.model}"):
        model = loading.load(args.model, args.size, weights=args.weights, allow_pickle=args.allow_pickle)
        result = inspect_model(model, args.size, args.dead_threshold)
    if args.json:
        blocks = [{**asdict(block), "byte_ratio": block.byte_ratio} for block in result.blocks]
        print(json.dumps({"model": args.model, **asdict(result), "blocks": blocks}, indent=2))
        return 0 if blocks else 1
    console = Console(highlight=False, markup=False, emoji=False)
    if result.blocks:
        console.print(_table(args.model, result))
        console.print(_legend(result))
    for reason in dict.fromkeys(result.refused.values()):
        paths = [path or "(model)" for path, why in result.refused.items() if why == reason]
        console.print(f"Not fused: {', '.join(paths)}: {reason}")
    if not result.blocks:
        print(f"mobilenet-ext inspect: {args.model} has no block that can be fused", file=sys.stderr)
        return 1
    return 0


def _table(name: str, result: Inspection) -> Table:
    from rich import box
    from rich.table import Table

    title = f"{name}, one image of {result.size}x{result.size}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("block, kernel", overflow="fold")
    table.add_column("channels, size", no_wrap=True)
    for heading in ("M mult-\nadds", "hidden\nKiB", "weights\nKiB", "bytes\nratio", "dead"):
        table.add_column(heading, justify="right", no_wrap=True)
    last = len(result.blocks) - 1
    for index, block in enumerate(result.blocks):
        # Spaces around the plus signs let the name of a kernel wrap between its stages.
        names = f"{block.path}\n{block.kernel.replace('+', ' + ')}"
        table.add_row(names, _places(block), *_numbers([block]), end_section=index == last)
    table.add_row("all", "", *_numbers(result.blocks))
    return table


def _places(block: BlockInspection) -> str:
    shapes = [block.in_shape, *block.hidden_shapes, block.out_shape]
    # The depthwise stage and the pool keep the width of the tensor before them: named once, after the input.
    widths = [str(shape[0]) for i, shape in enumerate(shapes) if i < 2 or shape[0] != shapes[i - 1][0]]
    sizes = dict.fromkeys("x".join(map(str, shape[1:])) or "1x1" for shape in (block.in_shape, block.out_shape))
    stride = "" if block.stride == (1, 1) else f" s{'x'.join(map(str, dict.fromkeys(block.stride)))}"
    return f"{' → '.join(widths)}\n{' → '.join(sizes)}{stride}"


def _numbers(blocks: Sequence[BlockInspection]) -> tuple[str, ...]:
    hidden, weights = sum(b.hidden_bytes for b in blocks), sum(b.weight_bytes for b in blocks)
    ratio = sum(b.fused_bytes for b in blocks) / sum(b.unfused_bytes for b in blocks)
    adds = sum(b.multiply_adds for b in blocks)
    dead, channels = sum(b.dead_channels for b in blocks), sum(b.depthwise_channels for b in blocks)
    numbers = f"{adds / 1e6:.2f}", f"{hidden / 1024:.0f}", f"{weights / 1024:.0f}", f"{ratio:.2f}"
    return (*numbers, f"{dead}/{channels}" if channels else "")


def _legend(result: Inspection) -> str:
    zero = sum(block.zero_channels for block in result.blocks)
    return (
        "s: stride; hidden: tensors inside the block, which fusing keeps out of memory; bytes ratio: bytes moved "
        "fused over one kernel per convolution; dead: depthwise channels whose folded kernel is at most "
        f"{result.dead_threshold:g} of the layer's largest weight ({zero} of them exactly zero), so that their output "
        "is a constant."
    )
