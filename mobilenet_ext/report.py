"""``fusion_report``: what of a model runs on fused kernels, on which ones, and why the rest does not."""

from __future__ import annotations

import dataclasses
import io
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console, Group
from rich.table import Table
from torch import Tensor, nn

from mobilenet_ext import gpu_verdicts
from mobilenet_ext._library import native
from mobilenet_ext.backends.gpu.runtime import mode
from mobilenet_ext.dead_channels import DROPPED, Dropped
from mobilenet_ext.fusion import unfuse
from mobilenet_ext.gpu_verdicts import GpuVerdict
from mobilenet_ext.matchers import Match, Refusal, match_module
from mobilenet_ext.modules.chain import FusedChain
from mobilenet_ext.modules.mixin import fused_chains, sharing_copy
from mobilenet_ext.modules.runs import Runs
from mobilenet_ext.modules.structure import STATE, plain_class
from mobilenet_ext.spec import BlockSpec, ChainItem

PYTORCH = "PyTorch"
KINDS = ("block", "conv", "linear", PYTORCH)
_NOTHING_TO_DO = (nn.Identity, nn.Dropout, nn.Dropout2d)
_GPU_OFF = "MOBILENET_EXT_GPU=off: on the GPU every fused item runs as PyTorch's operators"
_WRAPPED_IN = ("_orig_mod", "module")  # torch.compile, DistributedDataParallel


@dataclass(frozen=True)
class Row:
    """One unit of work.  ``kind`` is what it runs as now: 'block', 'conv', 'linear' or 'PyTorch'.

    ``fused`` says whether ``fuse`` swapped it; a swapped module may still run as PyTorch, and ``reason`` says why.
    ``kernel`` is empty until an input size is known (an example, or an earlier call).
    """

    path: str
    module: str
    fused: bool
    kind: str
    kernel: str = ""
    reason: str = ""


@dataclass(frozen=True)
class FusionReport:
    """``rows`` in the order of the model; ``notes`` on whole models and runs that do not apply as a whole.

    ``denormals_flushed`` counts the weights that packing set to zero because they were denormal, over all entries
    packed so far.  ``dropped`` says what ``fuse(model, drop_dead_channels=True)`` removed, by block.
    ``gpu`` has what the checks on a GPU decided in this process, per (item, dtype, shape class).
    """

    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    denormals_flushed: int
    dropped: tuple[tuple[str, Dropped], ...] = ()
    gpu: tuple[GpuVerdict, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """Rows per kind, every kind present."""
        found = Counter(row.kind for row in self.rows)
        return {kind: found[kind] for kind in KINDS}

    def to_json(self) -> str:
        content = {
            "rows": [dataclasses.asdict(row) for row in self.rows],
            "notes": list(self.notes),
            "counts": self.counts,
            "denormals_flushed": self.denormals_flushed,
            "dropped": {path: dataclasses.asdict(found) for path, found in self.dropped},
            "gpu": [dataclasses.asdict(verdict) for verdict in self.gpu],
        }
        return json.dumps(content, indent=2)

    def to_markdown(self) -> str:
        """A table for a pull request or an issue, then the notes as a list."""
        lines = ["| path | class | fused | runs as | kernel | reason |", "|---|---|---|---|---|---|"]
        for row in self.rows:
            cells = (row.path, row.module, "yes" if row.fused else "no", row.kind, row.kernel, row.reason)
            lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
        lines += ["", *(f"- {line}" for line in self._caption().splitlines())]
        if self.gpu:
            lines += ["", *gpu_verdicts.markdown_table(self.gpu)]
        return "\n".join(lines) + "\n"

    def __rich__(self) -> Table | Group:
        table = Table(title="Fusion report", caption=self._caption(), caption_justify="left")
        for column in ("path", "class", "fused", "runs as", "kernel", "reason"):
            table.add_column(column, overflow="fold")
        for row in self.rows:
            table.add_row(row.path, row.module, "yes" if row.fused else "no", row.kind, row.kernel, row.reason)
        return Group(table, gpu_verdicts.text_table(self.gpu)) if self.gpu else table

    def _caption(self) -> str:
        counts = self.counts
        lines = [
            f"{counts['block']} as whole blocks, {counts['conv']} as single convolutions, "
            f"{counts['linear']} as linear layers, {counts[PYTORCH]} in PyTorch",
            f"{self.denormals_flushed} denormal weights flushed to zero",
            *(
                f"{path}: {found.channels} of {found.hidden} hidden channels dropped, error at most {found.bound:.1e}"
                for path, found in self.dropped
            ),
            *self.notes,
        ]
        return "\n".join(lines)

    def __str__(self) -> str:
        file = io.StringIO()
        console = Console(file=file, width=140, color_system=None)
        console.print(self)
        return file.getvalue()


def fusion_report(model: nn.Module, example: Tensor | tuple[Any, ...] | None = None) -> FusionReport:
    """What of ``model`` is fused, on which kernels, and why the rest is not.

    The kernels are those for the input sizes of ``example`` (a tensor, or the tuple of arguments), with which the
    model is called once when it is in eval mode, else those of the last call.  TypeError if ``model`` is no Module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; allowed: a torch.nn.Module")
    if example is not None and not any(module.training for module in model.modules()):
        with torch.no_grad():
            model(*(example if isinstance(example, tuple) else (example,)))
    prefix, inner = _unwrap(model)
    return _Walk(inner, prefix).report()


def _unwrap(model: nn.Module) -> tuple[str, nn.Module]:
    for name in _WRAPPED_IN:
        wrapped = model._modules.get(name)
        if wrapped is not None and len(model._modules) == 1:
            prefix, inner = _unwrap(wrapped)
            return _join(name, prefix), inner
    return "", model


def _join(prefix: str, path: str) -> str:
    return f"{prefix}.{path}" if prefix and path else prefix or path


class _Walk:
    """One pass over a model; ``_plain`` is the same tree unfused, which the matchers can read."""

    def __init__(self, model: nn.Module, prefix: str) -> None:
        self._model = model
        self._prefix = prefix
        self._plain = unfuse(sharing_copy(model), inplace=True)
        self._seen: set[int] = set()
        self._rows: list[Row] = []
        self._notes: list[str] = []
        self._flushed = 0
        self._items: list[tuple[ChainItem, str]] = []

    def report(self) -> FusionReport:
        self._visit("", self._model, None)
        parts = ((self._label(path), vars(module).get(DROPPED)) for path, module in self._model.named_modules())
        dropped = tuple((path, found) for path, found in parts if found is not None)
        gpu = gpu_verdicts.verdicts_on(self._items)
        return FusionReport(tuple(self._rows), tuple(self._notes), self._flushed, dropped, gpu)

    def _visit(self, path: str, module: nn.Module, outer: str | None) -> None:
        """``outer`` is why the smallest chain around ``module`` does not run; None when there is no such chain."""
        if id(module) in self._seen:
            return
        self._seen.add(id(module))
        state: FusedChain | Runs | None = vars(module).get(STATE)
        if state is None:
            self._visit_plain(path, module, outer)
        elif isinstance(state, FusedChain):
            reason = self._add_chain(path, module, state, outer)
            if reason is not None and state.match.level != "block":
                self._visit_children(path, module, reason)
        else:
            reasons: list[str | None] = [outer] * len(module._modules)
            running: set[int] = set()
            for start, (stop, chain) in state.found.items():
                reason = self._add_chain(path, module, chain, outer)
                reasons[start:stop] = [reason] * (stop - start)
                running.update(range(start, stop) if reason is None else ())
            for index, (name, child) in enumerate(module._modules.items()):
                if child is not None and index not in running:
                    self._visit(_join(path, name), child, reasons[index])

    def _visit_children(self, path: str, module: nn.Module, outer: str | None) -> None:
        for name, child in module.named_children():
            self._visit(_join(path, name), child, outer)

    def _visit_plain(self, path: str, module: nn.Module, outer: str | None) -> None:
        match = match_module(self._plain.get_submodule(path))
        has_fused = any(fused_chains(part) for part in module.modules())
        reason = "supported, but not fused: call fuse()" if isinstance(match, Match) else ""
        if isinstance(match, Refusal):
            reason = match.reason
        if reason and has_fused:
            self._notes.append(f"{self._label(path)} as a whole: {reason}")
        has_tensors = bool(module._parameters or module._buffers)
        if module._modules and (has_fused or (not reason and not has_tensors)):
            self._visit_children(path, module, outer)
        elif not isinstance(module, _NOTHING_TO_DO):
            if not reason:
                reason = f"only fused in a larger chain: {outer}" if outer else "no fused kernel covers it here"
            self._add(path, module, False, PYTORCH, reason=reason)

    def _add(self, path: str, module: nn.Module, fused: bool, kind: str, kernel: str = "", reason: str = "") -> None:
        self._rows.append(Row(self._label(path), plain_class(module).__name__, fused, kind, kernel, reason))

    def _label(self, path: str) -> str:
        return _join(self._prefix, path) or "(model)"

    def _add_chain(self, path: str, module: nn.Module, chain: FusedChain, outer: str | None) -> str | None:
        """Add the rows of a chain that runs now; else say why it does not, so that its parts speak for themselves."""
        reason = chain.reason(module)
        if reason is not None:
            if chain.match.level == "block":
                self._add(path, module, True, PYTORCH, reason=reason)
            elif reason != outer:
                self._notes.append(f"{self._label(path)} as a whole: {reason}")
            return reason
        for slot in (chain.slot, chain.graph_slot):
            self._flushed += (native.slot_info(slot.id) or {"denormals_flushed": 0})["denormals_flushed"]
        on_gpu = _is_on_gpu(module, chain)
        steps = [] if on_gpu else plan_of(chain)
        if on_gpu and mode() == "off" and _GPU_OFF not in self._notes:
            self._notes.append(_GPU_OFF)
        for index, (item, parts) in enumerate(zip(chain.match.chain, item_paths(chain.match), strict=True)):
            kind, kernel = item.kind if isinstance(item, BlockSpec) else "linear", ""
            if steps:
                kind, kernel = steps[index]["kind"], steps[index]["kernel"]
            elif on_gpu:
                kernel = gpu_verdicts.choices_of(item)
            if training := chain.training_kernel(module, index):
                kernel = training
            parts = tuple(_innermost(module, part) for part in parts)
            if not parts:  # a mean over the image, of no module with tensors
                continue
            labels = " + ".join(self._label(_join(path, part)) for part in parts)
            classes = " + ".join(plain_class(module.get_submodule(part)).__name__ for part in parts)
            self._rows.append(Row(labels, classes, True, kind, kernel))
            self._items.append((item, labels))
        return None


def _is_on_gpu(module: nn.Module, chain: FusedChain) -> bool:
    source = chain.match.sources[0]
    return bool(getattr(module.get_submodule(source.path), source.name).is_cuda)


def plan_of(chain: FusedChain) -> list[dict[str, Any]]:
    """The kernels that the last input's size takes, one per item; empty before the first call."""
    if chain.last_shape is None:
        return []
    height, width = chain.last_shape[2:]
    return native.plan(chain.program, chain.constants, height, width, torch.get_num_threads())


def item_paths(match: Match) -> Iterator[tuple[str, ...]]:
    """For each item of the chain the submodules that it stands for, the largest ones that belong to it alone."""
    owners: list[tuple[str, ...]] = []
    sources = iter(match.sources)
    for item in match.chain:
        count = sum(len(spec.sources) for _, spec in item.stages())
        owners.append(tuple(dict.fromkeys(next(sources).path for _ in range(count))))
    for own in owners:
        others = [path for paths in owners if paths is not own for path in paths]
        yield tuple(dict.fromkeys(_largest_part(path, others) for path in own))


def _largest_part(path: str, others: list[str]) -> str:
    atoms = path.split(".")
    for length in range(len(atoms) + 1):
        part = ".".join(atoms[:length])
        if not any(other == part or not part or other.startswith(part + ".") for other in others):
            return part
    return path


def _innermost(module: nn.Module, path: str) -> str:
    """Through Sequentials that hold one child only."""
    part = module.get_submodule(path)
    while type(part) is nn.Sequential and len(part) == 1:
        path = _join(path, next(iter(part._modules)))
        part = part[0]
    return path
