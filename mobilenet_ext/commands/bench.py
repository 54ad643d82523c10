"""``mobilenet-ext bench``: networks and layers against PyTorch and other engines."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..bench.cases import Case
    from ..bench.results import Report
    from ..bench.runner import Plan
    from ..loading import Files

DESCRIPTION = (
    "Time fused networks, or single layers, against PyTorch and other engines: paired, interleaved rounds in one "
    "process, every result verified against float64 before it is timed. Exit status 1 if one of ours is wrong."
)
EPILOG = (
    "Without options: MobileNetV2 at its own size, batch 1 and 8, 1 and 2 threads, against PyTorch eager and "
    "torch.compile. `pip install 'mobilenet_ext[bench]'` brings the engines of --rivals all."
)
_BATCHES = (1, 8)
_LAYER_BATCHES = (1,)
_GPU_BATCHES = (1, 32, 256)
_PIPE_WIDTH = 140  # characters


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from ..bench.shapes import KINDS
    from . import options

    parser = subparsers.add_parser(
        "bench", help="time against PyTorch and other engines", description=DESCRIPTION, epilog=EPILOG
    )
    what = parser.add_argument_group("what")
    what.add_argument(
        "--model",
        action="append",
        metavar="NAME",
        help=f"{options.MODEL_HELP}; may be repeated",
    )
    options.add_files(what)
    what.add_argument("--size", type=_size, action="append", metavar="PIXELS", help="224 or 200x300; may be repeated")
    what.add_argument("--batch", type=_positive, nargs="+", metavar="N", help="batch sizes (default: 1 8)")
    what.add_argument("--threads", type=_positive, nargs="+", metavar="N", help="numbers of threads (default: 1 2)")
    what.add_argument("--rivals", metavar="LIST", help="comma-separated names, or default, all, none")
    what.add_argument("--layers", action="store_true", help="time the layers of each --model as well")
    what.add_argument(
        "--kernels", nargs="*", choices=KINDS, metavar="KIND", help=f"time layers of V1 and V2: {', '.join(KINDS)}"
    )
    what.add_argument("--shapes", metavar="FILE", help="time the layers of a file, one a line (see docs/benchmarks)")
    what.add_argument("--overhead", action="store_true", help="also: what a call costs outside the kernels")
    what.add_argument("--memory", action="store_true", help="also: peak memory of a forward at the largest batch")
    what.add_argument(
        "--training",
        action="store_true",
        help="time training steps instead: batch 16 and 32, frozen and batch BatchNorm",
    )
    how = parser.add_argument_group("how")
    how.add_argument("--rounds", type=_positive, metavar="N", help="exactly so many rounds instead of --seconds")
    how.add_argument("--seconds", type=float, metavar="S", help="time of the rounds of one configuration")
    how.add_argument("--cold", action="store_true", help="flush the caches between calls")
    how.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to run (default: cpu)")
    how.add_argument("--dtype", choices=("fp32", "fp16", "bf16"), nargs="+", help="on a GPU (default: fp16)")
    how.add_argument("--isa", metavar="NAME", help="cap our kernels at an instruction set")
    out = parser.add_argument_group("output")
    out.add_argument("--json", metavar="FILE", help="also write everything as JSON; - for standard output alone")
    out.add_argument("--markdown", action="store_true", help="print Markdown instead of tables")
    out.add_argument("--plot", type=Path, metavar="FILE", help="draw it (needs mobilenet_ext[plot]); times layers, too")
    parser.set_defaults(run=run)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size in pixels; allowed: 224 or 200x300")
    return int(match[1]), int(match[2] or match[1])


def run(args: argparse.Namespace) -> int:
    """0, or 1 if a result of ours was wrong."""
    from rich.console import Console

    from .._library import native
    from ..bench import report as reports
    from ..bench import runner

    # What would make a run useless is to be noticed before the measurements.
    if args.weights and len(_names(args)) != 1:
        raise ValueError(f"--weights is given for {len(_names(args))} models; allowed: one --model")
    for name, target in (("--json", args.json), ("--plot", args.plot)):
        if target not in (None, "-") and not Path(target).parent.is_dir():
            raise ValueError(f"{name} is {str(target)!r}; its directory does not exist")
    if args.plot is not None:
        try:
            import matplotlib  # noqa: F401
        except ModuleNotFoundError:
            raise ImportError("matplotlib is not installed; pip install 'mobilenet_ext[plot]' brings it") from None
    if args.device == "cuda":
        return _run_on_gpu(args)
    if args.dtype:
        raise ValueError("--dtype is for --device cuda; on the CPU the arithmetic is fp32")
    if args.training:
        return _training(args)
    if args.isa:
        native.set_isa_cap(args.isa)
    try:
        with _Progress() as progress:
            report = _new_report(args)
            for case, plan in _work(args, report):
                report.results += runner.run(case, plan, progress)
            _extras(args, report, progress)
    finally:
        if args.isa:
            native.set_isa_cap(None)
    if args.json == "-":
        print(report.to_json())
    elif args.markdown:
        print(reports.markdown(report))
    else:
        console = Console()
        reports.print_report(report, console if console.is_terminal else Console(width=_PIPE_WIDTH))
    if args.json not in (None, "-"):
        Path(args.json).write_text(report.to_json() + "\n")
    if args.plot is not None:
        from ..bench import plot

        plot.write(report, args.plot)
    return int(report.wrong)


def _training(args: argparse.Namespace) -> int:
    """0, or 1 if a gradient of ours was more than twice as far off as PyTorch's."""
    from rich.console import Console

    from .._library import native
    from ..bench import machine, training, training_report

    size = args.size[0][0] if args.size else 224
    rounds, threads = args.rounds or 5, max(_threads(args))
    forms = training.FORMS if args.rivals in (None, "default", "all") else ("eager channels_last", "mobilenet_ext")
    settings = {"isa": native.isa(), "size": size, "threads": threads, "rounds": rounds, "input": "fp32, channels_last"}
    report, files = training_report.TrainingReport(machine.describe(), settings), _files(args)
    with _Progress() as progress:
        for name in _names(args):
            report.steps += training.measure(
                name, args.batch or [16, 32], size, threads, rounds, forms, progress, files
            )
            for mode in training.MODES:
                progress(f"gradients of {name}, {mode}", 0.0)
                report.errors.append(
                    {"model": name, "mode": mode, **training.gradient_errors(name, mode, size, files=files)}
                )
        report.layers = training.depthwise_layers(min(args.batch or [16]), threads, rounds, progress)
    if args.json == "-":
        print(report.to_json())
    else:
        console = Console()
        training_report.print_report(report, console if console.is_terminal else Console(width=_PIPE_WIDTH))
    if args.json not in (None, "-"):
        Path(args.json).write_text(report.to_json() + "\n")
    return int(report.wrong)


def _run_on_gpu(args: argparse.Namespace) -> int:
    """The same subjects on a GPU; 0, or 1 if a result of ours was wrong."""
    from ..bench import cases, gpu

    gpu.require_gpu()
    subjects = [cases.network(name, size, _files(args)) for name in _names(args) for size in args.size or [None]]
    subjects += [cases.layer_case(layer) for layer in _listed_layers(args)]
    with _Progress() as progress:
        batches, dtypes = args.batch or list(_GPU_BATCHES), args.dtype or ["fp16"]
        report = gpu.run(subjects, batches, dtypes, lambda text: progress(text, 0.0))
    print(report.to_json() if args.json == "-" else report.markdown())
    if args.json not in (None, "-"):
        Path(args.json).write_text(report.to_json() + "\n")
    return int(bool(report.wrong))


def _threads(args: argparse.Namespace) -> list[int]:
    from ..bench import machine

    return args.threads or sorted({1, min(2, machine.cores())})


def _new_report(args: argparse.Namespace) -> Report:
    from .._library import native
    from ..bench import machine
    from ..bench.results import Report

    settings = {
        "isa": native.isa(),
        "input": "fp32, contiguous NCHW (single layers: channels_last), torch.inference_mode",
        "rounds": args.rounds or f"{_seconds(args)} s for each configuration, at least 5",
        "caches": "flushed before every call" if args.cold else "warm",
    }
    return Report(machine.describe(), settings)


def _only_layers(args: argparse.Namespace) -> bool:
    return (args.kernels is not None or args.shapes is not None) and not args.model


def _seconds(args: argparse.Namespace) -> float:
    return args.seconds if args.seconds is not None else (0.5 if _only_layers(args) else 4.0)


def _files(args: argparse.Namespace) -> Files:
    from ..loading import Files

    return Files(args.weights, args.allow_pickle)


def _names(args: argparse.Namespace) -> list[str]:
    from .. import loading

    if args.model or _only_layers(args):
        return args.model or []
    try:
        loading.load("torchvision:mobilenet_v2")
    except loading.LoadError:
        return ["reference:v2"]
    return ["mobilenet_v2"]


def _work(args: argparse.Namespace, report: Report) -> Iterator[tuple[Case, Plan]]:
    """Every case with how to run it; what a network's layers cannot be had for becomes a note."""
    from ..bench import cases, rivals, shapes
    from ..bench.runner import Plan
    from ..bench.timing import Schedule

    threads, sizes = _threads(args), args.size or [None]
    schedule = Schedule(args.rounds, _seconds(args))
    plan = Plan(args.batch or _BATCHES, threads, rivals.select(args.rivals or "default"), schedule, args.cold)
    short = Schedule(args.rounds, min(0.5, schedule.seconds), slot=0.01, settle=0.01)
    layer_rivals = rivals.select(args.rivals or "eager,eager channels_last")
    layer_plan = Plan(args.batch or _LAYER_BATCHES, threads, layer_rivals, short, args.cold)
    layers = list(_listed_layers(args))
    roofline = args.plot is not None and not args.layers and not layers
    for name in _names(args):
        for size in sizes:
            case = cases.network(name, size, _files(args))
            yield case, plan
            if args.layers or roofline:
                quick = Plan((min(plan.batches),), threads, (), short, args.cold)
                try:
                    found = shapes.network_layers(case.model, case.image[1:])
                except ValueError as error:
                    report.notes.append(str(error))
                    continue
                yield from ((cases.layer_case(layer), layer_plan if args.layers else quick) for layer in found)
    yield from ((cases.layer_case(layer), layer_plan) for layer in layers)


def _listed_layers(args: argparse.Namespace) -> Iterator[Any]:
    """The layers of --shapes and --kernels, each shape once."""
    from ..bench import shapes

    if args.shapes is not None:
        yield from shapes.read(args.shapes)
    if args.kernels is not None:
        yield from shapes.paper_layers(args.kernels or shapes.KINDS)


def _extras(args: argparse.Namespace, report: Report, progress: _Progress) -> None:
    from ..bench import cases, memory, overhead, plot, startup
    from ..bench.timing import Schedule

    names, files = _names(args), _files(args)
    size = args.size[0] if args.size else None
    if names:
        progress("import and first calls", 0.0)
        models = [startup.model_times(cases.network(name, size, files)) for name in names]
        report.startup = {"imports": startup.import_times(), "models": models}
    if args.overhead:
        progress("overhead", 0.0)
        report.overhead = overhead.measure(Schedule(args.rounds, min(2.0, _seconds(args))))
    if args.memory:
        for name in names:
            progress(f"memory of {name}", 0.0)
            report.memory += memory.measure(name, max(args.batch or _BATCHES), size, max(_threads(args)), files)
    if args.plot is not None:
        report.machine["memory_bandwidth"] = plot.memory_bandwidth()


class _Progress:
    """A line on standard error that says what goes on; nothing where that is no terminal."""

    def __enter__(self) -> _Progress:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        console = Console(stderr=True)
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        self._display = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._display.add_task("starting", total=1.0)
        self._display.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._display.stop()

    def __call__(self, text: str, part: float) -> None:
        self._display.update(self._task, description=text, completed=part)
