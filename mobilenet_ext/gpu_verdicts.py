"""What the checks on a GPU decided on the items of a model, for ``fusion_report``: as records, text and Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from rich.table import Table

from mobilenet_ext.backends import cuda, triton
from mobilenet_ext.backends.gpu.classes import item_key
from mobilenet_ext.backends.gpu.plans import BASELINE
from mobilenet_ext.backends.gpu.runtime import runtime
from mobilenet_ext.backends.gpu.trial import Verdict
from mobilenet_ext.spec import BlockSpec, ChainItem

HEADINGS = ("path", "operation", "class", "runs as", "why", "checked")


@dataclass(frozen=True)
class GpuVerdict:
    """One (item, dtype, shape class) that ran on a GPU in this process.

    ``paths`` are the rows of the report with this item; ``batch`` is the upper end of the batch's class and ``image``
    is C x H x W; ``dtype`` ends in ``+tf32`` where TF32 was allowed.  ``choice`` is the candidate that is used or
    ``aten``.  ``seconds`` has every right candidate and PyTorch, ``rejected`` every wrong or failing one with the
    reason, and ``not_checked`` every backend without a candidate with the reason.
    """

    paths: tuple[str, ...]
    operation: str
    dtype: str
    batch: int
    image: str
    layout: str
    choice: str
    why: str
    seconds: dict[str, float]
    rejected: dict[str, str]
    not_checked: dict[str, str]

    @property
    def shape_class(self) -> str:
        return f"{self.dtype}, up to {self.batch} x {self.image}, {self.layout}"

    def outcomes(self) -> Iterator[str]:
        """One line per candidate, then one per backend that had none."""
        baseline = self.seconds.get(BASELINE)
        for name, seconds in self.seconds.items():
            if name != BASELINE and baseline:
                kept = "kept" if name == self.choice else "right, not kept"
                yield f"{name}: {kept}, {seconds / baseline:.2f} of PyTorch's time"
        yield from (f"{name}: rejected, {reason}" for name, reason in self.rejected.items())
        yield from (f"{backend}: not checked, {reason}" for backend, reason in self.not_checked.items())

    def cells(self) -> tuple[str, ...]:
        """The columns of ``HEADINGS``; lines within a cell are separated by newlines."""
        paths, checked = "\n".join(self.paths), "\n".join(self.outcomes())
        return paths, self.operation, self.shape_class, self.choice, self.why, checked


def describe(item: BlockSpec) -> str:
    """Channels of every stage, then the depthwise kernel and stride, as ``16->96->24, 3x3 s2``."""
    widths = [str(item.in_channels)]
    widths += [str(spec.out_channels) for role, spec in item.stages() if role in ("expand", "project")]
    shape = item.depthwise or item.expand
    text = "->".join(widths)
    return text if shape is None else f"{text}, {shape.kernel[0]}x{shape.kernel[1]} s{shape.stride[0]}"


def _not_checked(item: BlockSpec, verdict: Verdict, dtype: str) -> dict[str, str]:
    names = {name.partition(".")[0] for name in (*verdict.seconds, *verdict.rejected, verdict.choice)}
    reasons = {}
    for backend in (cuda, triton):
        if backend.name not in names:
            element = getattr(torch, dtype.partition("+")[0])
            reason = backend.unsupported(item, torch.device("cuda"), element)
            # A backend that takes the item in general may still have no kernel for these widths or this size.
            reasons[backend.name] = reason or "no kernel for these sizes, or an earlier one was trusted"
    return reasons


def verdicts_on(items: Sequence[tuple[ChainItem, str]]) -> tuple[GpuVerdict, ...]:
    """The verdicts of this process on ``items``, pairs of an item and its path, in the order of the first path."""
    places: dict[str, list[str]] = {}
    specs: dict[str, BlockSpec] = {}
    for item, path in items:
        if isinstance(item, BlockSpec):
            key = item_key(item)
            specs[key] = item
            places.setdefault(key, []).append(path)
    found = []
    for key, item in specs.items():
        for full, verdict in runtime.verdicts():
            head, *rest = full.split("|")
            if head != key:
                continue
            dtype, batch, image, layout = rest
            found.append(
                GpuVerdict(
                    tuple(places[key]), describe(item), dtype, int(batch[1:]), image, layout,
                    verdict.choice, verdict.why, dict(verdict.seconds), dict(verdict.rejected),
                    _not_checked(item, verdict, dtype),
                )
            )  # fmt: skip
    return tuple(found)


def choices_of(item: ChainItem) -> str:
    """The candidates that ``item`` runs as on a GPU, over its classes of this process; empty before the first."""
    if not isinstance(item, BlockSpec):
        return BASELINE
    key = item_key(item)
    names = dict.fromkeys(v.choice for full, v in runtime.verdicts() if full.partition("|")[0] == key)
    return ", ".join(names)


def text_table(verdicts: Sequence[GpuVerdict]) -> Table:
    table = Table(title="Checked on the GPU", show_lines=True)
    for heading in HEADINGS:
        table.add_column(heading, overflow="fold")
    for verdict in verdicts:
        table.add_row(*verdict.cells())
    return table


def markdown_table(verdicts: Sequence[GpuVerdict]) -> list[str]:
    lines = ["| " + " | ".join(HEADINGS) + " |", "|" + "---|" * len(HEADINGS)]
    for verdict in verdicts:
        cells = (cell.replace("|", r"\|").replace("\n", "<br>") for cell in verdict.cells())
        lines.append("| " + " | ".join(cells) + " |")
    return lines
