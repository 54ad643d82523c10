"""``mobilenet-ext info``: versions, CPU, instruction sets, kernels, backends and environment variables."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

DESCRIPTION = (
    "Versions, CPU features, the instruction set in use and why, kernels, backends and why not, and the environment "
    "variables of this package. Paste the --json form into a bug report."
)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("info", help="versions, CPU, kernels and backends", description=DESCRIPTION)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Always 0."""
    from mobilenet_ext.info import collect

    found = collect()
    if args.json:
        print(json.dumps(found, indent=2))
        return 0

    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    for table in (
        _facts(found),
        _isas(found["isa"]),
        _kernels(found["kernels"]),
        _backends(found),
        _environment(found),
    ):
        console.print(table)
    return 0


def _table(title: str, *headings: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(*headings, title=title, title_justify="left", box=box.SIMPLE_HEAD, show_header=bool(headings))
    if not headings:
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
    return table


def _facts(found: dict[str, Any]) -> Table:
    table = _table("Installation and machine")
    versions = {name: version or "not installed" for name, version in found["versions"].items()}
    optional = {name: versions.pop(name) for name in list(versions)[3:]}
    for name, version in versions.items():
        table.add_row(name, version)
    table.add_row("optional packages", ", ".join(f"{name} {version}" for name, version in optional.items()))
    place, cpu, threads = found["platform"], found["cpu"], found["threads"]
    table.add_row("package", place["package"])
    table.add_row("platform", f"{place['system']}, {place['os']}")
    table.add_row("CPU", cpu["model"])
    features = [name for name, present in cpu["features"].items() if present]
    missing = [name for name, present in cpu["features"].items() if not present]
    table.add_row("CPU features", f"{', '.join(features) or 'none'}; without {', '.join(missing) or 'none'}")
    table.add_row("caches", ", ".join(f"{name} {size // 1024} KiB" for name, size in cpu["cache_sizes"].items()))
    openmp = f"; {threads['openmp']}" if threads["openmp"] else ""
    limit = f", OMP_NUM_THREADS={threads['OMP_NUM_THREADS']}" if threads["OMP_NUM_THREADS"] else ""
    table.add_row("threads", f"{threads['torch']} of {threads['usable_cores']} usable cores{limit}{openmp}")
    table.add_row("CUDA", found["devices"]["cuda"] or "available")
    return table


def _isas(isa: dict[str, Any]) -> Table:
    table = _table(f"Instruction set: {isa['name']} ({isa['why']})", "name", "description", "supported")
    for entry in isa["all"]:
        supported = "yes, in use" if entry["active"] else "yes" if entry["supported"] else f"no: {entry['reason']}"
        table.add_row(entry["name"], entry["description"], supported)
    return table


def _kernels(kernels: Iterable[dict[str, str]]) -> Table:
    table = _table("Kernels", "op", "dtype", "ISA", "tiles (pointwise: pixels x channels)")
    tiles: dict[tuple[str, ...], list[str]] = {}
    for kernel in kernels:
        tiles.setdefault((kernel["op"], kernel["dtype"], kernel["isa"]), []).append(kernel["tile"])
    for names, shapes in tiles.items():
        table.add_row(*names, ", ".join(shapes))
    return table


def _backends(found: dict[str, Any]) -> Table:
    table = _table("Backends, in order", "name", "what it is", "runs", "why not the rest")
    for backend in found["backends"]:
        runs = [f"{cell['device']} {cell['dtype']}" for cell in backend["runs"] if cell["reason"] is None]
        reasons = dict.fromkeys(cell["reason"] for cell in backend["runs"] if cell["reason"] is not None)
        table.add_row(backend["name"], backend["description"], "\n".join(runs) or "nothing here", "\n".join(reasons))
    return table


def _environment(found: dict[str, Any]) -> Table:
    table = _table("Environment variables", "name", "value", "meaning")
    for variable in found["environment"]:
        value = variable["value"]
        table.add_row(variable["name"], "not set" if value is None else repr(value), variable["meaning"])
    return table
