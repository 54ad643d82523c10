"""The traffic and resource tables of docs/gpu.md, from what the emulation counted and the compiler reported.

``gpu_table.py TRAFFIC [LOG...]`` prints them; TRAFFIC is the output of ``cuda_traffic``, each LOG that of
``nvcc -Xptxas -v`` named ``<anything>_sm_<number>.log``.  With ``--check DOCUMENT`` every line of the traffic tables
has to stand in the document, and every kernel of its resource table has to hold at least the warps stated there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "csrc/tests"), str(ROOT / "mobilenet_ext/backends")]

from cuda_resources import demangle, parse  # noqa: E402

Usage = import_module("occupancy").Usage

_SHOWN = (
    "depthwise_kernel<half, 8, 3, 1>", "depthwise_kernel<half, 8, 3, 2>", "depthwise_kernel<half, 8, 5, 1>",
    "depthwise_kernel<bf16, 8, 3, 1>", "depthwise_kernel<float, 4, 3, 1>",
    "depthwise_backward_data_kernel<half, 8, 3, 1, 0>", "depthwise_backward_data_kernel<half, 8, 3, 2, 1>",
    "depthwise_backward_weight_kernel<half, 8, 3, 1>", "depthwise_backward_weight_kernel<half, 2, 5, 1>",
    "inverted_residual_kernel<half, 1, 4, false>", "inverted_residual_kernel<half, 1, 10, false>",
    "inverted_residual_kernel<bf16, 1, 10, false>", "inverted_residual_kernel<float, 1, 6, false>",
    "inverted_residual_kernel<float, 1, 6, true>",
)  # fmt: skip
_SHARED = {4: 86528, 10: 93952, 6: 93952}  # bytes of a typical layer, by tiles per warp


def _kb(count: int) -> str:
    return f"{count / 1000:.0f}"


def traffic_table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Markdown: bytes per image in fp16, as counted."""
    yield "| kernel | layer | moved, kB | least, kB | ratio |"
    yield "|---|---|---|---|---|"
    seen = set()
    for row in rows:
        line = f"| {row['kernel']} | {row.get('layer', '')} | {_kb(row['moved'])} |"
        if "least" in row:
            line += f" {_kb(row['least'])} | {row['moved'] / row['least']:.2f} |"
        else:
            line += " | |"
        if row.get("splits", 1) > 1:
            line = line.replace(" |", f", hidden channels over {row['splits']} CTAs |", 2).replace(
                f", hidden channels over {row['splits']} CTAs |", " |", 1
            )
        if line not in seen:
            seen.add(line)
            yield line


def block_table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Markdown: how each whole block is laid out, and what its weights cost."""
    yield "| block | tile | shared memory, kB | weights, kB | weights read from L2 per image, kB |"
    yield "|---|---|---|---|---|"
    for row in rows:
        if row["kernel"] == "inverted_residual" and row["splits"] == 1:
            numbers = [_kb(row[name]) for name in ("shared", "weights", "weights_l2")]
            yield f"| {row['layer']} | {row['tile']} | " + " | ".join(numbers) + " |"


def resource_table(logs: list[Path]) -> Iterator[str]:
    """Markdown: registers, spills and occupancy per architecture."""
    archs = [int(log.stem.rsplit("_", 1)[1]) for log in logs]
    yield "| kernel | " + " | ".join(f"sm_{arch}: registers, warps of 64" for arch in archs) + " |"
    yield "|---|" + "---|" * len(archs)
    cells: dict[str, list[str]] = {name: [] for name in _SHOWN}
    for log, arch in zip(logs, archs, strict=True):
        kernels = parse(log.read_text())
        for name, kernel in zip(demangle([kernel.name for kernel in kernels]), kernels, strict=True):
            if name not in cells:
                continue
            threads = 128 if "backward_weight" in name else 256
            shared = _SHARED[int(name.split(", ")[2])] if "inverted" in name else kernel.static_shared
            usage = Usage(kernel.registers, shared, kernel.spills, threads)
            cells[name].append(f"{kernel.registers}, {usage.occupancy(arch) * 64:.0f}")
    for name, values in cells.items():
        yield f"| `{name}` | " + " | ".join(values) + " |"


def lost_warps(logs: list[Path], document: list[str]) -> Iterator[str]:
    """What the compiled kernels fall short of: fewer resident warps than the document's table says, or no such row.

    Registers are not compared, since a patch release of nvcc may move them by a few.
    """
    stated = {line.split(" | ")[0]: line for line in document if line.startswith("| `")}
    for line in list(resource_table(logs))[2:]:
        name = line.split(" | ")[0]
        if name not in stated:
            yield f"no row {name[2:]}"
            continue
        pairs = zip(line.split(" | ")[1:], stated[name].split(" | ")[1:], strict=True)
        for log, (found, wanted) in zip(logs, pairs, strict=True):
            warps, least = (int(cell.strip(" |").split(", ")[1]) for cell in (found, wanted))
            if warps < least:
                yield f"{log.stem}: {name[2:]} holds {warps} warps per multiprocessor; {least} are stated"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("traffic", type=Path)
    parser.add_argument("logs", nargs="*", type=Path)
    parser.add_argument("--check", type=Path, metavar="DOCUMENT")
    arguments = parser.parse_args()
    rows = [json.loads(line) for line in arguments.traffic.read_text().splitlines()]
    traffic = [*traffic_table(rows), "", *block_table(rows)]
    if arguments.check:
        document = arguments.check.read_text().splitlines()
        missing = [line for line in traffic if line not in document]
        for line in missing:
            print(f"{arguments.check} lacks: {line}")
        short = list(lost_warps(arguments.logs, document)) if arguments.logs else []
        for line in short:
            print(f"{arguments.check}: {line}")
        return 1 if missing or short else 0
    print("\n".join([*traffic, "", *resource_table(arguments.logs)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
