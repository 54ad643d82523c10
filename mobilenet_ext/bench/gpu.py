"""Times on a GPU: networks and single blocks against PyTorch, with CUDA events, a cold L2 and CUDA graphs.

Every result is verified before it is timed.  The shares are of what this very GPU reaches in a copy and in a matrix
product, measured in the same run.  Nothing here has a figure of its own: it prints what it measured.
"""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from mobilenet_ext.backends.gpu.runtime import runtime
from mobilenet_ext.bench.cases import Case
from mobilenet_ext.bench.statistics import median
from mobilenet_ext.freshness import Slot
from mobilenet_ext.fusion import fuse
from mobilenet_ext.spec import encode

OURS = "mobilenet_ext"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_FLUSH_BYTES = 256 * 2**20  # more than the L2 of any GPU today
_WARM, _RUNS = 5, 30
_COPY_BYTES = 2**29
_SQUARE = 8192
_VERIFIED = 4  # images compared with float64
Call = Callable[[], object]


@dataclass
class Row:
    """One contender on one subject; ``seconds`` is the median with a cold L2, ``graph_seconds`` under a CUDA graph."""

    subject: str
    dtype: str
    batch: int
    contender: str
    seconds: float | None = None
    graph_seconds: float | None = None
    bytes: int = 0
    flops: int = 0
    copy_share: float | None = None
    matmul_share: float | None = None
    note: str = ""


@dataclass
class GpuReport:
    """What the GPU is, what it reaches, and the rows."""

    machine: dict[str, str]
    copy_bytes_per_second: float
    matmul_flops: dict[str, float]
    rows: list[Row] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    choices: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    def markdown(self) -> str:
        """A table of every row, then what our dispatch chose and why."""
        lines = [
            ", ".join(f"{name} {value}" for name, value in self.machine.items()),
            f"copy {self.copy_bytes_per_second / 1e9:.0f} GB/s; matrix product "
            + ", ".join(f"{name} {flops / 1e12:.0f} TFLOP/s" for name, flops in self.matmul_flops.items()),
            "",
            "| subject | dtype | batch | contender | us | us in a graph | share of copy | share of matmul | note |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for row in self.rows:
            times = [f"{value * 1e6:.1f}" if value else "" for value in (row.seconds, row.graph_seconds)]
            shares = [f"{share:.0%}" if share else "" for share in (row.copy_share, row.matmul_share)]
            cells = [row.subject, row.dtype, str(row.batch), row.contender, *times, *shares, row.note]
            lines.append("| " + " | ".join(cells) + " |")
        lines += ["", *(f"- `{key}`: {why}" for key, why in self.choices.items())]
        return "\n".join(lines + [f"WRONG: {text}" for text in self.wrong])


def require_gpu() -> None:
    """RuntimeError with one sentence where torch has no GPU."""
    from mobilenet_ext.backends.gpu.limits import no_device

    if not torch.cuda.is_available():
        raise RuntimeError(f"--device cuda needs a GPU; {no_device()}")


def machine() -> dict[str, str]:
    properties = torch.cuda.get_device_properties(0)
    versions = {"torch": str(torch.__version__), "CUDA": str(torch.version.cuda or torch.version.hip)}
    return {"GPU": properties.name, "capability": f"{properties.major}.{properties.minor}", **versions}


class Timer:
    """Medians by CUDA events; between calls a buffer larger than the L2 is written."""

    def __init__(self) -> None:
        self._flush = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device="cuda")

    def seconds(self, call: Call, cold: bool = True) -> float:
        for _ in range(_WARM):
            call()
        times = []
        for _ in range(_RUNS):
            if cold:
                self._flush.zero_()
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            stop.record()
            stop.synchronize()
            times.append(start.elapsed_time(stop) / 1e3)
        return median(times)

    def graph_seconds(self, call: Call) -> float:
        """The same with the call captured once in a CUDA graph, warm."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return self.seconds(graph.replay, cold=False)


def copy_rate(timer: Timer) -> float:
    """Bytes per second, read and written, of a copy much larger than the L2."""
    source = torch.empty(_COPY_BYTES, dtype=torch.int8, device="cuda")
    target = torch.empty_like(source)
    return 2 * _COPY_BYTES / timer.seconds(lambda: target.copy_(source))


def matmul_rate(timer: Timer, dtype: torch.dtype) -> float:
    """FLOP per second of a large square product."""
    a = torch.randn(_SQUARE, _SQUARE, device="cuda").to(dtype)
    return 2.0 * _SQUARE**3 / timer.seconds(lambda: a @ a, cold=False)


@contextlib.contextmanager
def _depthwise_kernel(name: str) -> Iterator[None]:
    """torch.backends.cudnn.flags(depthwise_kernel=...) where this torch has the switch."""
    with torch.backends.cudnn.flags(enabled=True, depthwise_kernel=name):
        yield


def depthwise_switches() -> list[str]:
    """The settings of cuDNN's depthwise switch; one empty name where this torch has none."""
    try:
        with _depthwise_kernel("cudnn"):
            return ["cudnn", "native"]
    except TypeError:
        return [""]


def contenders(case: Case, model: nn.Module, x: Tensor) -> Iterator[tuple[str, Callable[[], Call]]]:
    """Names and makers of calls: eager in both layouts and with both depthwise kernels, compiled, TensorRT, ours."""
    last = x.to(memory_format=torch.channels_last)
    last_model = copy.deepcopy(model).to(memory_format=torch.channels_last)

    def eager(module: nn.Module, image: Tensor, switch: str) -> Call:
        def call() -> object:
            with _depthwise_kernel(switch) if switch else contextlib.nullcontext():
                return module(image)

        return call

    def compiled(**options: str) -> Call:
        torch._dynamo.reset()  # what was compiled for other cases counts towards the recompile limit
        made = torch.compile(last_model, **options)  # type: ignore[call-overload]
        return lambda: made(last)

    for switch in depthwise_switches():
        label = f" depthwise {switch}" if switch else ""
        yield f"eager NCHW{label}", partial(eager, model, x, switch)
        yield f"eager channels_last{label}", partial(eager, last_model, last, switch)
    yield "compiled max-autotune", partial(compiled, mode="max-autotune-no-cudagraphs")
    if find_spec("torch_tensorrt") is not None:
        yield "TensorRT", partial(compiled, backend="torch_tensorrt")
    yield OURS, partial(_ours, case, last_model, last)


def _ours(case: Case, model: nn.Module, x: Tensor) -> Call:
    """Our way to run a case: the fused model, or for a single layer the chain operator with packed weights."""
    if case.layer is None:
        fused = fuse(model)
        return lambda: fused(x)
    slot = Slot()
    program, constants = encode((case.layer.item,))
    operators = torch.ops.mobilenet_ext
    operators.chain(x, list(model.buffers()), slot.tensor, program, constants)
    return lambda: operators.chain_cached(x, slot.tensor)


def measure(report: GpuReport, timer: Timer, case: Case, batch: int, dtype: str) -> None:
    """Verify and time every contender on ``case``; the shares count the least bytes and the FLOPs of one forward."""
    kind = DTYPES[dtype]
    model = copy.deepcopy(case.model).to("cuda", kind).eval()
    x = case.example(batch).to("cuda", kind)
    moved = case.bytes(batch) * torch.finfo(kind).bits // 32
    flops = 2 * batch * case.multiply_adds
    few = min(batch, _VERIFIED)
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(x[:few].double())
        allowed = 2 * (model(x[:few]).double() - exact).square().mean().sqrt() + 1e-12
        for name, make in contenders(case, model, x):
            row = Row(case.name, dtype, batch, name, bytes=moved, flops=flops)
            report.rows.append(row)
            try:
                call = make()
                y = call()
                assert isinstance(y, Tensor)
                error = (y[:few].double() - exact).square().mean().sqrt()
                if name == OURS and not error <= allowed:
                    report.wrong.append(f"{case.name} {dtype} batch {batch}: RMS {error:.3g}, allowed {allowed:.3g}")
                    row.note = "wrong"
                    continue
                row.seconds = timer.seconds(call)
                row.graph_seconds = timer.graph_seconds(call)
            except Exception as problem:  # one contender that fails must not end the run
                row.note = f"{type(problem).__name__}: {str(problem).partition(chr(10))[0]}"[:80]
                continue
            row.copy_share = moved / row.seconds / report.copy_bytes_per_second
            row.matmul_share = flops / row.seconds / report.matmul_flops[dtype]


def run(
    subjects: list[Case], batches: list[int], dtypes: list[str], progress: Callable[[str], None] = lambda text: None
) -> GpuReport:
    """Every case at every batch size and dtype; RuntimeError where torch has no GPU."""
    require_gpu()
    timer = Timer()
    progress("copy and matrix product")
    report = GpuReport(machine(), copy_rate(timer), {name: matmul_rate(timer, DTYPES[name]) for name in dtypes})
    for case in subjects:
        for dtype in dtypes:
            for batch in batches:
                progress(f"{case.name} {dtype} batch {batch}")
                measure(report, timer, case, batch, dtype)
    report.choices = {key: verdict.why for key, verdict in runtime.verdicts()}
    return report
