"""The figures as tables, for a terminal or as Markdown: neutral tables first, so that both say the same."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mobilenet_ext.bench.cases import NETWORK
from mobilenet_ext.bench.results import OURS, Entry, Report, Result
from mobilenet_ext.bench.statistics import Interval

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Table:
    """``lost`` are the indices of the rows in which we are slower; ``notes`` go below; ``is_text`` aligns left."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    lost: frozenset[int] = frozenset()
    notes: tuple[str, ...] = ()
    is_text: bool = False


def tables(report: Report) -> Iterator[Table]:
    """Every table of a report, in reading order."""
    yield _machine(report)
    yield from (_network(result) for result in report.results if result.kind == NETWORK)
    yield from _layers([result for result in report.results if result.kind != NETWORK])
    yield from _extras(report)
    if report.results:
        yield _contenders(report.results)
        yield _summary(report.results)


def print_report(report: Report, console: Console) -> None:
    """To a terminal, with the rows where we lose in red."""
    from rich import box
    from rich.table import Table as RichTable

    for table in tables(report):
        rendered = RichTable(title=table.title, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
        for index, heading in enumerate(table.headings):
            left = index == 0 or table.is_text
            rendered.add_column(heading, justify="left" if left else "right", overflow="fold", no_wrap=index == 0)
        for index, row in enumerate(table.rows):
            rendered.add_row(*row, style="red" if index in table.lost else None)
        console.print(rendered, markup=False)
        for note in table.notes:
            console.print(note, style="red" if note.startswith("Slower") else None, markup=False, highlight=False)
        console.print()
    for note in report.notes:
        console.print(note, style="red", markup=False, highlight=False)


def markdown(report: Report) -> str:
    """The same tables; rows where we lose are bold."""
    lines: list[str] = []
    for table in tables(report):
        lines += [f"### {table.title}", "", _line(table.headings), _line(["---"] * len(table.headings))]
        for index, row in enumerate(table.rows):
            lines.append(_line([f"**{cell}**" if index in table.lost and cell else cell for cell in row]))
        lines += ["", *(f"{note}\n" for note in table.notes)]
    lines += [f"{note}\n" for note in report.notes]
    return "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _ratio(interval: Interval | None) -> str:
    return "" if interval is None else f"{interval.median:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def _machine(report: Report) -> Table:
    def text(value: object) -> str:
        if isinstance(value, dict):
            return ", ".join(f"{key} {item}" for key, item in value.items()) or "-"
        return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)

    rows = [(key, text(value)) for part in (report.machine, report.settings) for key, value in part.items()]
    return Table("Machine and settings", ("", "value"), tuple(rows), is_text=True)


def _network(result: Result) -> Table:
    headings = ("contender", "ms/image p50", "min", "p99", "% of peak", "ours is faster", "in quiet rounds", "error")
    rows: list[tuple[str, ...]] = []
    for entry in result.entries:
        timing = entry.timing
        if timing is None:
            error = "" if entry.relative_error is None else f"{entry.relative_error:.1e}"
            rows.append((entry.name, entry.status, "", "", "", "", "", error))
            continue
        scale = 1e3 / result.batch
        times = [f"{scale * t:.2f}" for t in (timing.p50, timing.minimum, timing.p99)]
        share = f"{100 * result.share(entry):.1f}"
        ratios = (_ratio(entry.speedup), _ratio(entry.quiet_speedup))
        rows.append((entry.name, *times, share, *ratios, f"{entry.relative_error or 0.0:.1e}"))
    lost = frozenset(index for index, entry in enumerate(result.entries) if entry in result.losses)
    reasons = tuple(f"{entry.name}: {entry.reason}" for entry in result.entries if entry.reason)
    kernels = (
        ", ".join(f"{count} {name}" for name, count in result.kernels.items()) or "none of ours: nothing was fused"
    )
    rounds = f"{result.rounds} rounds, {result.quiet_rounds} of them quiet{', cold caches' if result.cold else ''}"
    ran = f"kernels that ran: {kernels}; {rounds}"
    return Table(_title(result, f"{result.case}, "), headings, tuple(rows), lost, (ran, *reasons))


def _title(result: Result, name: str = "") -> str:
    threads = f"{result.threads} thread{'s' if result.threads > 1 else ''}"
    work = f"{result.multiply_adds / 1e6:.1f} M multiply-adds, " if name else ""
    return f"{name}batch {result.batch}, {threads}: {work}FMA peak {result.peak / 1e9:.0f} GFLOP/s ({result.isa})"


def _layers(results: Sequence[Result]) -> Iterator[Table]:
    """One table per batch, number of threads and set of contenders: a row per layer."""
    groups: dict[tuple[int, int, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.batch, result.threads, result.kind), []).append(result)
    for (batch, threads, kind), group in groups.items():
        others = list(dict.fromkeys(e.name for result in group for e in result.entries if e.name != OURS))
        headings = ("layer", "us", "% of peak", "error", *(f"vs {name}" for name in others), "plan")
        rows, lost, notes = [], set(), []
        for index, result in enumerate(group):
            entries = {entry.name: entry for entry in result.entries}
            own = entries[OURS]
            time = f"{1e6 * own.timing.p50:.1f}" if own.timing else own.status
            error = "" if own.relative_error is None else f"{own.relative_error:.1e}"
            against = [_against(entries.get(name)) for name in others]
            rows.append((result.case, time, f"{100 * result.share(own):.1f}", error, *against, result.choice))
            if result.losses:
                lost.add(index)
            notes += [f"{result.case}, {e.name}: {e.reason}" for e in result.entries if e.reason]
        peak = max(result.peak for result in group)
        title = f"{kind}, batch {batch}, {threads} threads: FMA peak {peak / 1e9:.0f} GFLOP/s ({group[0].isa})"
        yield Table(title, headings, tuple(rows), frozenset(lost), tuple(dict.fromkeys(notes)))


def _against(entry: Entry | None) -> str:
    if entry is None:
        return ""
    return _ratio(entry.speedup) if entry.timing else entry.status


def _extras(report: Report) -> Iterator[Table]:
    rows: list[tuple[str, ...]]
    if report.startup:
        startup = report.startup
        rows = [(name.replace("_", " ", 1), f"{seconds:.2f} s") for name, seconds in startup["imports"].items()]
        for model in startup["models"]:
            rows.append((f"fuse {model['model']}", f"{1e3 * model['fuse']:.0f} ms"))
            for call in ("first", "second"):
                packs = f"{model[f'{call}_call_packs']} packed"
                rows.append((f"{call} call, batch 1", f"{1e3 * model[f'{call}_call']:.1f} ms, {packs}"))
        yield Table("Before the steady state", ("", "time"), tuple(rows))
    if report.overhead:
        rows = [(row["what"], f"{row['microseconds']:.1f}") for row in report.overhead]
        yield Table("Overhead: one pixel, one thread", ("", "us per call"), tuple(rows))
    if report.memory:
        rows = [
            (f"{row['model']}, batch {row['batch']}, {row['form']}", f"{row['bytes'] / 2**20:.1f}")
            for row in report.memory
        ]
        yield Table("Peak memory of one forward, above what is there before it", ("", "MiB"), tuple(rows))


def _contenders(results: Sequence[Result]) -> Table:
    seen = {entry.name: entry for result in results for entry in result.entries}
    rows = tuple((entry.name, entry.version, entry.setting) for entry in seen.values())
    return Table("Contenders", ("name", "version", "setting"), rows, is_text=True)


def best_rival(result: Result) -> Entry | None:
    """The fastest rival by the median of the ratios; None if none was timed."""
    rivals = [e for e in result.entries if not e.is_ours and e.speedup is not None]
    return min(rivals, key=lambda e: e.speedup.median if e.speedup else math.inf, default=None)


def _summary(results: Sequence[Result]) -> Table:
    """Every configuration against its fastest rival, what it loses, and the geometric mean."""
    rows: list[tuple[str, ...]] = []
    lost, notes, logs = set(), [], []
    for result in results:
        best = best_rival(result)
        if best is None or best.speedup is None:
            continue
        if best.speedup.median < 1:
            lost.add(len(rows))
            names = ", ".join(f"{e.name} ({_ratio(e.speedup)})" for e in result.losses)
            notes.append(f"Slower: {result.case}, batch {result.batch}, {result.threads} threads: {names}")
        logs.append(math.log(best.speedup.median))
        ratios = (_ratio(best.speedup), _ratio(best.quiet_speedup))
        rows.append((result.case, str(result.batch), str(result.threads), best.name, *ratios))
    missing = dict.fromkeys(f"{e.name}: {e.status}, {e.reason}" for r in results for e in r.entries if e.reason)
    if rows and not lost:
        notes.append("Nowhere slower than a rival that was timed.")
    if logs:
        notes.append(f"Geometric mean over {len(logs)} configurations: {math.exp(sum(logs) / len(logs)):.2f}")
    notes += [f"Not compared with {text}" for text in missing]
    return Table(
        "Times faster than the best rival, 95 % interval",
        ("case", "batch", "threads", "best rival", "ours is faster", "in quiet rounds"),
        tuple(rows),
        frozenset(lost),
        tuple(notes),
    )
