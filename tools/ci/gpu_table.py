"""The tables of docs/gpu.md: traffic as the emulation counted it, resources as the compilers reported them.

``gpu_table.py TRAFFIC [LOG...] [--triton FILE]`` prints them; TRAFFIC is the output of ``cuda_traffic``, each LOG that
of ``nvcc -Xptxas -v`` named ``<anything>_sm_<number>.log``, FILE that of ``triton.aot --json``.  With ``--check
DOCUMENT`` every line of the traffic tables has to stand in the document, and every kernel has to hold at least the
warps stated there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from resource_tables import family_table, lost_triton, lost_warps, read_triton, resource_table, triton_table


def _kb(count: int) -> str:
    return f"{count / 1000:.0f}"


def traffic_table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Markdown: bytes per image in fp16 of a batch that fills the GPU, as counted."""
    yield "| kernel | layer | moved, kB | least, kB | ratio |"
    yield "|---|---|---|---|---|"
    yield from dict.fromkeys(_traffic_line(row) for row in rows if row.get("ctas", 1) == 1)


def _traffic_line(row: dict[str, Any]) -> str:
    start = f"| {row['kernel']} | {row.get('layer', '')} | {_kb(row['moved'])} |"
    return start + (f" {_kb(row['least'])} | {row['moved'] / row['least']:.2f} |" if "least" in row else " | |")


def single_table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Markdown: what the blocks move for one image that has the GPU to itself, and over how many CTAs."""
    yield "| block | tile | hidden channels over | CTAs | moved, kB | least, kB | ratio |"
    yield "|---|---|---|---|---|---|---|"
    for row in rows:
        if row.get("ctas", 1) > 1:
            if row["kernel"] == "inverted_residual":
                cells = [row["layer"], row["tile"], row["splits"], row["programs"]]
                ratio = f"{row['moved'] / row['least']:.2f}"
                yield "| " + " | ".join(map(str, [*cells, _kb(row["moved"]), _kb(row["least"]), ratio])) + " |"
            else:
                yield f"| {row['kernel']} | | | | {_kb(row['moved'])} | | |"


def block_table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Markdown: how each whole block is laid out, and what its weights cost."""
    yield "| block | tile | shared memory, kB | weights, kB | weights read from L2 per image, kB |"
    yield "|---|---|---|---|---|"
    for row in rows:
        if row["kernel"] == "inverted_residual" and row["ctas"] == 1:
            numbers = [_kb(row[name]) for name in ("shared", "weights", "weights_l2")]
            yield f"| {row['layer']} | {row['tile']} | " + " | ".join(numbers) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("traffic", type=Path)
    parser.add_argument("logs", nargs="*", type=Path)
    parser.add_argument("--triton", type=Path, metavar="FILE")
    parser.add_argument("--check", type=Path, metavar="DOCUMENT")
    arguments = parser.parse_args()
    rows = [json.loads(line) for line in arguments.traffic.read_text().splitlines()]
    traffic = [*traffic_table(rows), "", *single_table(rows), "", *block_table(rows)]
    kernels = read_triton(arguments.triton) if arguments.triton else []
    if arguments.check:
        document = arguments.check.read_text().splitlines()
        missing = [line for line in traffic if line not in document]
        for line in missing:
            print(f"{arguments.check} lacks: {line}")
        short = list(lost_warps(arguments.logs, document)) if arguments.logs else []
        short += lost_triton(kernels, document) if kernels else []
        for line in short:
            print(f"{arguments.check}: {line}")
        return 1 if missing or short else 0
    print("\n".join(traffic))
    if arguments.logs:
        print("\n".join(["", *resource_table(arguments.logs), "", *family_table(arguments.logs)]))
    if kernels:
        print("\n".join(["", *triton_table(kernels)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
