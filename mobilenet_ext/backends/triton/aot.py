"""Every Triton kernel compiled for GPUs that are not here, with the registers, shared memory and spills of the result.

Needs no GPU: Triton's own ptxas and LLVM do the work.  Tests, the continuous integration and ``docs/gpu.md`` use it.
The least occupancy of a kernel stands in its docstring, as "Occupancy at least 0.5." or, where it depends on the taps,
"Occupancy at least 0.5 with 3x3 taps, 0.375 with 5x5 taps."
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mobilenet_ext.backends.occupancy import Usage
from mobilenet_ext.backends.triton import (
    batch_norm_backward,
    block,
    depthwise,
    depthwise_backward,
    pointwise,
    reduction,
)

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
DTYPES = ("fp16", "bf16", "fp32")


@dataclass(frozen=True)
class Case:
    """One kernel with its constants; ``occupancy`` is the least share of resident warps that it must reach."""

    name: str
    kernel: Any
    constants: dict[str, Any]
    pointers: dict[str, str]  # argument name to dtype, "T" for the tensor's
    warps: int
    stages: int
    occupancy: float
    scalars: dict[str, str]  # scalar arguments that are not i32


@dataclass(frozen=True)
class Row:
    """One compiled case: what :class:`Usage` holds, and the least and actual share of resident warps."""

    kernel: str
    target: str
    dtype: str
    registers: int
    shared: int
    spills: int
    occupancy: float
    least: float

    @property
    def ok(self) -> bool:
        return self.spills == 0 and self.occupancy >= self.least


def stated_occupancy(kernel: Any, taps: int | None) -> float:
    """The least occupancy in the docstring of ``kernel``, for ``taps`` x ``taps`` taps if it has any.

    ValueError if the docstring states none.
    """
    text = " ".join((kernel.fn.__doc__ or "").partition("Occupancy at least ")[2].split())
    by_taps = {size: share for share, size in re.findall(r"(\d\.\d+) with (\d)x\d taps", text)}
    found = by_taps.get(str(taps)) if by_taps else next(iter(re.findall(r"^(\d\.\d+)\.", text)), None)
    if found is None:
        raise ValueError(f"the docstring of {kernel.fn.__name__} states no occupancy for {taps}x{taps} taps")
    return float(found)


_VECTORS = ("scale", "bias", "shift", "mean", "rstd", "sums", "partial", "total")
_TENSORS = ("x", "y", "dx", "dy", "v", "dv", "weight", "residual")


def _case(name: str, kernel: Any, warps: int = 4, stages: int = 3, **constants: Any) -> Case:
    pointers = {}
    for argument in kernel.arg_names:
        stem = argument.removeprefix("ex_").removeprefix("dw_").removeprefix("pj_")
        if argument not in constants and stem in _VECTORS + _TENSORS:
            pointers[argument] = "fp32" if stem in _VECTORS else "T"
    scalars = {"count": "fp32"} if "count" in kernel.arg_names else {}
    occupancy = stated_occupancy(kernel, constants.get("KH"))
    return Case(name, kernel, constants, pointers, warps, stages, occupancy, scalars)


def _taps(kernel: int, stride: int) -> dict[str, int]:
    return {"KH": kernel, "KW": kernel, "SH": stride, "SW": stride, "DH": 1, "DW": 1}


def cases(dtype: str) -> Iterator[Case]:
    """Every configuration that dispatch can choose.

    The first of each kernel over kernel sizes, strides and layouts; the others, with a number at the end of the name,
    with 3x3 and 5x5 taps.  Products as wide as they get: narrower tiles hold fewer sums.
    """
    yield from _depthwise_cases()
    yield from _product_cases("ieee")
    if dtype == "fp32":  # where torch allows it
        yield from _product_cases("tf32", "_tf32")
    bm, bc = batch_norm_backward.REDUCE_TILE
    yield _case("batch_norm_backward_reduce", batch_norm_backward.reduce_kernel, ACT=2, BM=bm, BC=bc)
    for number, (bm, bc, warps) in enumerate(batch_norm_backward.APPLY_CONFIGS):
        name, kernel = _numbered("batch_norm_backward_apply", number), batch_norm_backward.apply_kernel
        yield _case(name, kernel, warps, ACT=2, BATCH=True, BM=bm, BC=bc)
    if dtype == "fp32":
        bk, be = reduction.TILE
        yield _case("sum_partials", reduction.sum_partials_kernel, BK=bk, BE=be)


def _numbered(name: str, config: int) -> str:
    return f"{name}:{config}" if config else name


def _depthwise_cases() -> Iterator[Case]:
    for kernel, stride in ((3, 1), (3, 2), (5, 1), (5, 2)):
        taps = _taps(kernel, stride)
        tried = None if stride == 1 else 1
        name = f"k{kernel}s{stride}"
        for nhwc, configs in ((True, depthwise.CONFIGS_NHWC), (False, depthwise.CONFIGS_NCHW)):
            for number, (rows, columns, lanes, warps) in enumerate(list(configs)[:tried]):
                tile = {"ROWS": rows, "BW": columns, "BC": lanes}
                layout = "nhwc" if nhwc else "nchw"
                yield _case(
                    _numbered(f"depthwise_{layout}_{name}", number), depthwise.depthwise_kernel, warps,
                    ACT=2, NHWC=nhwc, **taps, **tile,
                )  # fmt: skip
        for number, (columns, lanes, warps) in enumerate(list(depthwise_backward.DATA_CONFIGS)[:tried]):
            yield _case(
                _numbered(f"depthwise_backward_data_{name}", number), depthwise_backward.backward_data_kernel, warps,
                BW=columns, BC=lanes, **taps,
            )  # fmt: skip
        pixels, lanes = depthwise_backward.WEIGHT_TILE
        yield _case(
            f"depthwise_backward_weight_{name}",
            depthwise_backward.backward_weight_kernel,
            TAPS=triton.next_power_of_2(kernel * kernel),
            BP=pixels,
            BC=lanes,
            **taps,
        )


def _product_cases(precision: str, suffix: str = "") -> Iterator[Case]:
    exact: dict[str, Any] = {"PRECISION": precision, "WIDE": False}
    for number, (bm, bn, bk, warps) in enumerate(pointwise.CONFIGS):
        tile = {"BM": bm, "BN": bn, "BK": bk}
        name = _numbered(f"pointwise{suffix}", number)
        yield _case(name, pointwise.pointwise_kernel, warps, ACT=2, RESIDUAL=True, **exact, **tile)
    options: dict[str, Any] = {"DW_ACT": 2, "PJ_ACT": 0, "RESIDUAL": True, **exact}
    widest = block.WIDEST_OUTPUT
    for number, (bm, bc, few, many) in enumerate(block.PROJECT_CONFIGS):
        sizes = [(32, 3)] * (number == 0 and not suffix) + [(widest, 3)] * (not suffix) + [(widest, 5)]
        for outputs, kernel in sizes:
            name = f"depthwise_project_{outputs}{suffix}" + ("" if kernel == 3 else f"_k{kernel}")
            yield _case(
                _numbered(name, number), block.depthwise_project_kernel, few if outputs <= 32 else many, 1,
                BM=bm, BC=bc, BO=outputs, **options, **_taps(kernel, 1),
            )  # fmt: skip
    for number, (bm, bc, outputs, warps) in enumerate(block.BLOCK_CONFIGS):
        yield _case(
            _numbered(f"inverted_residual{suffix}", number), block.inverted_residual_kernel, warps, 1,
            EX_ACT=2, BM=bm, BC=bc, BO=outputs, BK=block.WIDEST_INPUT, **options, **_taps(3, 1),
        )  # fmt: skip


def compile_case(case: Case, dtype: str, target: str) -> Usage:
    """Compile ``case`` for ``target`` (a key of ``TARGETS``) and read what the binary needs."""
    signature = {}
    for argument in case.kernel.arg_names:
        if argument in case.constants:
            signature[argument] = "constexpr"
        elif argument in case.pointers:
            kind = case.pointers[argument]
            signature[argument] = "*" + (dtype if kind == "T" else kind)
        else:
            signature[argument] = case.scalars.get(argument, "i32")
    # What the launcher finds out by itself: pointers are aligned, and so are the channel counts of the networks.
    aligned = [i for i, name in enumerate(signature) if name in case.pointers or name in ("channels", "hidden")]
    source = ASTSource(
        fn=case.kernel,
        signature=signature,
        constexprs=case.constants,
        attrs={(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    compiled = triton.compile(
        source, target=TARGETS[target], options={"num_warps": case.warps, "num_stages": case.stages}
    )
    shared = int(compiled.metadata.shared)
    if TARGETS[target].backend == "hip":
        text = compiled.asm["amdgcn"]
        # Scalar registers spill into lanes of vector registers, which count as registers; what reaches memory is here.
        spills = sum(int(n) for n in re.findall(r"\.private_segment_fixed_size:\s+(\d+)", text))
        registers = max(int(n) for n in re.findall(r"\.vgpr_count:\s+(\d+)", text))
        return Usage(registers, shared, spills, case.warps * 64)
    found = _resources(compiled.asm["cubin"])
    return Usage(found["REG"], shared, found["STACK"] + found["LOCAL"], case.warps * 32)


def occupancy(usage: Usage, target: str) -> float:
    """Resident warps (wavefronts) of a kernel on ``target`` over those that the hardware can hold."""
    return usage.occupancy_cdna3() if TARGETS[target].backend == "hip" else usage.occupancy(int(target[3:]))


def _resources(cubin: bytes) -> dict[str, int]:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([str(tool), "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL|SHARED):(\d+)", text)}


def compile_all(target: str) -> Iterator[Row]:
    """Every case in every dtype for ``target``."""
    for dtype in DTYPES:
        for case in cases(dtype):
            usage = compile_case(case, dtype, target)
            yield Row(
                case.name, target, dtype, usage.registers, usage.shared, usage.spills, occupancy(usage, target),
                case.occupancy,
            )  # fmt: skip


def _compiled(target: str) -> list[Row]:
    return list(compile_all(target))


def main() -> int:
    """Compile everything for every target, print one line per target; exit status 1 on spills or low occupancy."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was compiled, one object per line")
    arguments = parser.parse_args()
    rows: list[Row] = []
    with ProcessPoolExecutor(min(len(TARGETS), len(os.sched_getaffinity(0)))) as pool:
        per_target = list(pool.map(_compiled, TARGETS))
    for target, found in zip(TARGETS, per_target, strict=True):
        for row in found:
            if not row.ok:
                print(row)
        most = max(row.registers for row in found)
        print(f"{target}: {len(found)} kernels compiled, at most {most} registers", flush=True)
        rows += found
    if arguments.json:
        arguments.json.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows))
    return 0 if all(row.ok for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
