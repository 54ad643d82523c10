"""The resource tables of docs/gpu.md: registers, shared memory, spills and occupancy of the kernels as compiled.

CUDA: a table of some kernels, and the least warps of every family, which all kernels have to hold.  Triton: a table of
some kernels in every dtype; the least occupancy of each stands in its docstring and is checked where it is compiled.
"""

from __future__ import annotations

import json
import re
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
_TRITON_SHOWN = (
    "depthwise_nhwc_k3s1", "depthwise_nchw_k3s1", "depthwise_backward_data_k3s1", "depthwise_backward_weight_k3s1",
    "pointwise", "depthwise_project_32", "depthwise_project_64", "inverted_residual", "batch_norm_backward_reduce",
    "batch_norm_backward_apply", "sum_partials",
)  # fmt: skip
_SHARED = {4: 86528, 10: 93952, 6: 93952}  # bytes of a typical layer, by tiles per warp
_WEIGHT_THREADS = 128


def _usage(name: str, kernel: Any) -> Any:
    """What a launch of a kernel takes, dynamic shared memory included; ``name`` as :func:`demangle` writes it."""
    threads, shared = 256, kernel.static_shared
    numbers = name.partition("<")[2].split(", ")
    if name.startswith("inverted_residual"):
        shared = _SHARED[int(numbers[2])]
    elif name.startswith("depthwise_backward_weight"):
        threads = _WEIGHT_THREADS
        shared += 4 * threads * int(numbers[1])  # one float per channel of each thread
    return Usage(kernel.registers, shared, kernel.spills, threads)


def _architecture(log: Path) -> int:
    return int(log.stem.rsplit("_", 1)[1])


def _warps(log: Path) -> dict[str, tuple[int, int]]:
    """Registers and resident warps of every kernel of a log of ``nvcc -Xptxas -v``."""
    kernels, found = parse(log.read_text()), {}
    for name, kernel in zip(demangle([kernel.name for kernel in kernels]), kernels, strict=True):
        found[name] = (kernel.registers, round(_usage(name, kernel).occupancy(_architecture(log)) * 64))
    return found


def resource_table(logs: list[Path]) -> Iterator[str]:
    """Markdown: registers and resident warps per architecture."""
    yield "| kernel | " + " | ".join(f"sm_{_architecture(log)}: registers, warps of 64" for log in logs) + " |"
    yield "|---|" + "---|" * len(logs)
    found = [_warps(log) for log in logs]
    for name in _SHOWN:
        yield f"| `{name}` | " + " | ".join("{}, {}".format(*warps[name]) for warps in found) + " |"


def family_table(logs: list[Path]) -> Iterator[str]:
    """Markdown: how many kernels each family has, and the least warps that any of them holds per architecture."""
    yield "| kernels | count | " + " | ".join(f"sm_{_architecture(log)}: least warps of 64" for log in logs) + " |"
    yield "|---|---|" + "---|" * len(logs)
    families: dict[str, list[list[int]]] = {}
    for place, log in enumerate(logs):
        for name, (_, warps) in _warps(log).items():
            families.setdefault(name.partition("<")[0], [[] for _ in logs])[place].append(warps)
    for family, per_log in sorted(families.items()):
        yield f"| all `{family}` | {len(per_log[0])} | " + " | ".join(str(min(warps)) for warps in per_log) + " |"


def lost_warps(logs: list[Path], document: list[str]) -> Iterator[str]:
    """What the compiled kernels fall short of: fewer resident warps than the document's tables say, or no such row.

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
    yield from _lost_families(logs, document)


def _lost_families(logs: list[Path], document: list[str]) -> Iterator[str]:
    rows = [re.fullmatch(r"\| all `(\w+)` \| (\d+) \| ([\d |]+) \|", line) for line in document]
    floors = {row[1]: (int(row[2]), [int(cell) for cell in row[3].split(" | ")]) for row in rows if row}
    for place, log in enumerate(logs):
        counts = dict.fromkeys(floors, 0)
        for name, (_, warps) in _warps(log).items():
            family = name.partition("<")[0]
            if family not in floors:
                yield f"no row for all `{family}`"
                continue
            counts[family] += 1
            least = floors[family][1][place]
            if warps < least:
                yield f"{log.stem}: {name} holds {warps} warps per multiprocessor; all `{family}` hold {least}"
        for family, count in counts.items():
            if count != floors[family][0]:
                yield f"{log.stem}: {count} kernels `{family}`; {floors[family][0]} are stated"


def read_triton(path: Path) -> list[dict[str, Any]]:
    """What ``python -m mobilenet_ext.backends.triton.aot --json`` wrote."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def triton_table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Markdown: one line per kernel and dtype; per target registers, shared memory, spills and occupancy."""
    targets = list(dict.fromkeys(row["target"] for row in rows))
    yield "| kernel | dtype | least | " + " | ".join(targets) + " |"
    yield "|---|---|---|" + "---|" * len(targets)
    by_key = {(row["kernel"], row["dtype"], row["target"]): row for row in rows}
    for kernel in _TRITON_SHOWN:
        for dtype in dict.fromkeys(row["dtype"] for row in rows if row["kernel"] == kernel):
            found = [by_key[kernel, dtype, target] for target in targets]
            cells = [
                f"{row['registers']}, {row['shared'] / 1000:.1f}, {row['spills']}, {row['occupancy']:.2f}"
                for row in found
            ]
            yield f"| {kernel} | {dtype} | {found[0]['least']:g} | " + " | ".join(cells) + " |"


def lost_triton(rows: list[dict[str, Any]], document: list[str]) -> Iterator[str]:
    """What the compiled Triton kernels fall short of: spills, or less occupancy than the document's table says."""
    stated = {tuple(line.split(" | ")[:3]): line.split(" | ")[3:] for line in document}
    for line in list(triton_table(rows))[2:]:
        key, cells = tuple(line.split(" | ")[:3]), line.split(" | ")[3:]
        if key not in stated or len(stated[key]) != len(cells):
            yield f"no row {' | '.join(key)} |"
            continue
        for found, wanted in zip(cells, stated[key], strict=True):
            spills, share = found.strip(" |").split(", ")[2:]
            least = wanted.strip(" |").split(", ")[3]
            if int(spills) or float(share) < float(least):
                yield f"{' | '.join(key)}: spills {spills}, occupancy {share}; none and {least} are stated"
