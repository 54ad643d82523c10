"""``mobilenet-ext cost``: multiply-adds and parameters of MobileNetV1 and V2 beside their papers' figures."""

from __future__ import annotations

import argparse
import json
import math
import sys
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from ..cost import GridCost, ModelCost, SeparableCost

DESCRIPTION = (
    "Multiply-adds and parameters of MobileNetV1 and V2 over width (alpha) and resolution (beta, side 224 * beta), "
    "beside the papers' figures, and each depthwise-separable layer against the dense convolution it replaces."
)

LAW = "dense: one convolution of the same shape; law: 1/N + 1/Dk², N channels out"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "cost", help="multiply-adds and parameters, beside the papers'", description=DESCRIPTION
    )
    parser.add_argument("--model", choices=("v1", "v2", "all"), default="all", help="which network (default: all)")
    parser.add_argument(
        "--alpha", type=_multiplier, nargs="+", metavar="A", help="width multipliers (default: those of the papers)"
    )
    parser.add_argument(
        "--beta", type=_multiplier, nargs="+", metavar="B", help="resolution multipliers, such as 0.5 or 192/224"
    )
    parser.add_argument("--layers", action="store_true", help="also print every layer")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables, layers included")
    parser.set_defaults(run=run)


def _multiplier(text: str) -> float:
    try:
        value = float(Fraction(text))
    except (ValueError, ZeroDivisionError, OverflowError):
        value = math.nan
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0, such as 0.75 or 192/224")
    return value


def run(args: argparse.Namespace) -> int:
    """Always 0.  Layers are those of the first alpha and beta asked for, or of 1 and 1."""
    from dataclasses import asdict

    from rich.console import Console

    from .. import cost

    names = ("v1", "v2") if args.model == "all" else (args.model,)
    alpha, beta = (args.alpha or [1.0])[0], (args.beta or [1.0])[0]
    size = cost.input_size(beta)
    results = {}
    with Console(stderr=True).status("counting") as status:
        for name in names:
            rows = []
            for row in cost.grid(name, args.alpha or cost.ALPHAS[name], args.beta or cost.BETAS):
                rows.append(row)
                status.update(f"counting {name}: alpha {row.alpha:g}, {row.input_size} pixels")
            whole = cost.model_cost(cost.build(name, alpha), size)
            results[name] = rows, whole, cost.separable_costs(whole)
    if args.json:
        document = {
            name: {
                "grid": [asdict(row) for row in rows],
                "note": cost.NOTES[name],
                "layers": {"alpha": alpha, "beta": beta, "input_size": size} | asdict(whole),
                "separable": [{**asdict(pair), "ratio": pair.ratio, "law": pair.law} for pair in pairs],
            }
            for name, (rows, whole, pairs) in results.items()
        }
        json.dump(document, sys.stdout, indent=2)
        print()
        return 0
    console = Console()
    for name, (rows, whole, pairs) in results.items():
        title = f"MobileNet{name.upper()}"
        console.print(_grid_table(title, rows))
        console.print(cost.NOTES[name], highlight=False)
        console.print()
        where = f"{title}, alpha {alpha:g}, {size} pixels"
        if args.layers:
            console.print(_layer_table(where, whole))
        console.print(_separable_table(where, pairs))
        console.print(LAW, highlight=False)
        console.print()
    return 0


def _table(title: str, *headings: str) -> Table:
    from rich import box
    from rich.table import Table

    # Narrow enough for 80 columns, which is what a pipe gets.
    table = Table(title=title, title_justify="left", box=box.SIMPLE, padding=0)
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("layer", "kind") else "right", no_wrap=True)
    return table


def _millions(count: int, digits: int = 2) -> str:
    return f"{count / 1e6:.{digits}f}"


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _grid_table(title: str, rows: list[GridCost]) -> Table:
    table = _table(title, "alpha", "beta", "pixels", "mult-adds (M)", "paper", "parameters (M)", "paper")
    for row in rows:
        table.add_row(
            f"{row.alpha:g}",
            f"{row.beta:.3f}",
            str(row.input_size),
            _millions(row.multiply_adds),
            "" if row.paper_multiply_adds is None else f"{row.paper_multiply_adds:g}",
            _millions(row.parameters, 3),
            "" if row.paper_parameters is None else f"{row.paper_parameters:g}",
        )
    return table


def _layer_table(title: str, whole: ModelCost) -> Table:
    table = _table(title, "layer", "kind", "in", "out", "kernel", "output", "mult-adds\n(M)", "params")
    for layer in whole.layers:
        channels = str(layer.in_channels), str(layer.out_channels)
        sizes = _size(layer.kernel), _size(layer.output_size)
        table.add_row(layer.path, layer.kind, *channels, *sizes, _millions(layer.multiply_adds), str(layer.parameters))
    norms = whole.parameters - sum(layer.parameters for layer in whole.layers)
    table.add_row("BatchNorm", "", "", "", "", "", "", str(norms), end_section=True)
    table.add_row("all", "", "", "", "", "", _millions(whole.multiply_adds), str(whole.parameters))
    return table


def _separable_table(title: str, pairs: list[SeparableCost]) -> Table:
    table = _table(title, "layer", "in", "out", "kernel", "output", "separable\n(M)", "dense\n(M)", "ratio", "law")
    for pair in pairs:
        channels = str(pair.in_channels), str(pair.out_channels)
        sizes = _size(pair.kernel), _size(pair.output_size)
        adds = _millions(pair.separable), _millions(pair.dense)
        table.add_row(pair.path, *channels, *sizes, *adds, f"{pair.ratio:.4f}", f"{pair.law:.4f}")
    return table
