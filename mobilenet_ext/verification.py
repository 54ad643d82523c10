"""Compares a fused model with the plain one it came from: every output and every fused module, against float64."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mobilenet_ext import tolerance
from mobilenet_ext.matchers import Match, match_module, source_tensors
from mobilenet_ext.tolerance import Comparison


@dataclass(frozen=True)
class VerifyRow:
    """One compared tensor: ``kind`` is 'output' or 'module', ``path`` where it comes from, ``name`` the class."""

    kind: str
    path: str
    name: str
    comparison: Comparison


@dataclass(frozen=True)
class VerifyResult:
    """Outputs first, then the fused modules in the order of the model; ``str()`` is a table."""

    rows: tuple[VerifyRow, ...]

    @property
    def ok(self) -> bool:
        """Whether every row is within the tolerance of docs/numerics."""
        return all(row.comparison.ok for row in self.rows)

    @property
    def fused(self) -> int:
        """How many fused modules were compared; a result without any says nothing about fusion."""
        return sum(row.kind == "module" for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON, null where a number is infinite or does not apply."""
        rows = []
        for row in self.rows:
            entry = {"kind": row.kind, "path": row.path, "class": row.name, **asdict(row.comparison)}
            rows.append({key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in entry.items()})
        return {"ok": self.ok, "fused": self.fused, "rows": rows}

    def __str__(self) -> str:
        from rich.console import Console
        from rich.table import Table

        columns = ("", "path", "class", "max abs", "max rel", "SQNR dB", "RMS / PyTorch's", "error / bound", "ok")
        table = Table(*columns, title="Errors against float64")
        for row in self.rows:
            result = row.comparison
            ratio = result.rms / result.rms_torch if result.rms_torch else (0.0 if result.rms == 0 else math.inf)
            worst = "-" if result.worst_ratio is None else f"{result.worst_ratio:.3f}"
            numbers = (f"{result.max_abs:.2e}", f"{result.max_rel:.2e}", f"{result.sqnr_db:.1f}", f"{ratio:.2f}", worst)
            table.add_row(row.kind, row.path or "(model)", row.name, *numbers, "yes" if result.ok else "NO")
        console = Console(file=io.StringIO(), width=140, markup=False, highlight=False, emoji=False)
        console.print(table)
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue().rstrip()


def verify(model: nn.Module, fused: nn.Module, example: Any) -> VerifyResult:
    """Run both models on ``example`` and compare every output and every fused module with float64.

    ``fused`` has the submodule names of ``model``; the modules compared are those whose class differs.  Each gets the
    input that it has in the float64 run of ``model``, rounded to the example's dtype, so that its own error is seen
    and not that of the modules before it.  ``example`` is a floating-point tensor or a tuple of positional arguments.
    Both models must be in eval mode and are left as they are.

    ValueError if a model is in training mode, ``example`` has no image, or the two models differ in submodule names
    or in the structure of their outputs.
    """
    for name, candidate in (("model", model), ("fused", fused)):
        if any(module.training for module in candidate.modules()):
            raise ValueError(f"{name} has modules in training mode; call eval() on it first: verify compares inference")
    arguments = example if isinstance(example, tuple) else (example,)
    if not any(isinstance(argument, Tensor) and argument.is_floating_point() for argument in arguments):
        raise ValueError(f"example holds no floating-point tensor, it is a {type(example).__name__}")
    paths = list(_fused_paths(model, fused))
    exact = copy.deepcopy(model).double()
    with torch.no_grad():
        inputs, exact_output = _run_capturing(exact, paths, arguments)
        rows = list(_outputs(model, fused, arguments, exact_output))
        for path in paths:
            if path in inputs:
                module = fused.get_submodule(path)
                result = _compare_module(model.get_submodule(path), module, exact.get_submodule(path), inputs[path])
                rows.append(VerifyRow("module", path, type(module).__name__, result))
    return VerifyResult(tuple(rows))


def _fused_paths(model: nn.Module, fused: nn.Module) -> Iterator[str]:
    plain = dict(model.named_modules())
    for path, module in fused.named_modules():
        if path not in plain:
            raise ValueError(f"fused has the submodule {path!r} that model does not have")
        if type(module) is not type(plain[path]):
            yield path


def _run_capturing(exact: nn.Module, paths: list[str], arguments: tuple[Any, ...]) -> tuple[dict[str, Tensor], Any]:
    """The output, and the first input of each module at ``paths``, rounded to the dtype of the example."""
    inputs: dict[str, Tensor] = {}
    dtype = next(a.dtype for a in arguments if isinstance(a, Tensor) and a.is_floating_point())

    def capture(path: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            if path not in inputs and len(args) == 1 and isinstance(args[0], Tensor):
                inputs[path] = args[0].detach().to(dtype, copy=True)

        return hook

    handles = [exact.get_submodule(path).register_forward_pre_hook(capture(path)) for path in paths]
    try:
        return inputs, exact(*(_double(argument) for argument in arguments))
    finally:
        for handle in handles:
            handle.remove()


def _outputs(model: nn.Module, fused: nn.Module, arguments: tuple[Any, ...], exact_output: Any) -> Iterator[VerifyRow]:
    reference, plain = _flatten(exact_output), _flatten(model(*arguments))
    actual = _flatten(fused(*arguments))
    if actual.keys() != reference.keys():
        raise ValueError(f"fused returns the tensors {list(actual)}; model returns {list(reference)}")
    for path, tensor in actual.items():
        result = _compare(tensor, plain[path], reference[path])
        yield VerifyRow("output", path, type(fused).__name__, result)


def _compare_module(plain: nn.Module, module: nn.Module, exact: nn.Module, x: Tensor) -> Comparison:
    actual = module(x)
    match = match_module(plain)
    if isinstance(match, Match) and x.dim() == 4:
        return tolerance.check(actual, match.chain, x, source_tensors(plain, match), x.dtype)
    return _compare(actual, plain(x), exact(x.double()))


def _compare(actual: Tensor, plain: Tensor, reference: Tensor) -> Comparison:
    rms_torch = (plain.double() - reference).square().nanmean().nan_to_num().sqrt().item()
    return tolerance.compare(actual, reference, rms_torch, dtype=plain.dtype)


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _flatten(value: Any, path: str = "") -> dict[str, Tensor]:
    """The tensors of a nested output by where they stand in it."""
    if isinstance(value, Tensor):
        return {path: value}
    entries: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        entries = list(value.items())
    elif isinstance(value, (list, tuple)):
        entries = list(enumerate(value))
    return {name: tensor for key, item in entries for name, tensor in _flatten(item, f"{path}[{key}]").items()}
