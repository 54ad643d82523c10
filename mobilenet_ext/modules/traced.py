"""The fused chain under torch.compile and torch.export.

No look at sizes, versions or addresses.  Training modes, classes and hooks of the inner modules are read with ordinary
Python, so that the compiler guards on them as it does for the plain modules.  What a chain itself says comes as one
string, so that the compiler guards on one value instead of on thousands.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.compiler import is_exporting

from mobilenet_ext.memory_format import in_format_of
from mobilenet_ext.modules.structure import Snapshot, plain_class
from mobilenet_ext.modules.switch import switch
from mobilenet_ext.spec import encode
from mobilenet_ext.training.run import Step, inactive, run_steps

if TYPE_CHECKING:
    from mobilenet_ext.matchers import Match
    from mobilenet_ext.modules.chain import FusedChain

_ops = torch.ops.mobilenet_ext
_FIELD, _ITEM, _PAIR, _LIST = "\n", "\t", "\r", ","


def _class_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def trace_key(match: Match, snapshot: Snapshot, layout: str, steps: Sequence[Step]) -> str:
    """Everything that a graph of the chain depends on: program, constants, tensors, modes, classes, training steps."""
    program, constants = encode(match.chain, layout)
    fields = (
        map(str, program),
        map(repr, constants),
        (source.path + _PAIR + source.name for source in match.sources),
        (path + _PAIR + kind for kind, paths in (("norm", match.norms), ("drop", match.identities)) for path in paths),
        (path + _PAIR + _class_name(cls) for path, cls in snapshot.classes()),
        map(_step_text, steps),
    )
    return _FIELD.join(_ITEM.join(field) for field in fields)


def _step_text(step: Step) -> str:
    norms = _LIST.join("-" if norm is None else f"{norm[0]}:{norm[1]}" for norm in step.norms)
    numbers = (step.program, step.constants, step.sources, (int(step.pool),))
    return _PAIR.join((*(_LIST.join(map(repr, part)) for part in numbers), norms))


def _numbers(text: str, kind: type) -> list[Any]:
    return [kind(number) for number in text.split(_LIST)] if text else []


def _steps(field: str) -> list[Step]:
    steps = []
    for item in field.split(_ITEM) if field else []:
        program, constants, sources, pool, norms = item.split(_PAIR)
        first, last = _numbers(sources, int)
        pairs = [None if norm == "-" else norm.split(":") for norm in (norms.split(_LIST) if norms else [])]
        named = tuple(None if pair is None else (pair[0], int(pair[1])) for pair in pairs)
        steps.append(
            Step(tuple(_numbers(program, int)), tuple(_numbers(constants, float)), (first, last), named, pool == "1")
        )
    return steps


def _pairs(field: str) -> list[list[str]]:
    return [item.split(_PAIR) for item in field.split(_ITEM)] if field else []


def _lookup(module: nn.Module | None, path: str) -> nn.Module | None:
    """The submodule at ``path`` by plain attribute access, which torch.compile turns into its usual sources."""
    for atom in path.split(".") if path else ():
        module = getattr(module, atom, None)
    return module


def run_traced(chain: FusedChain, module: nn.Module, x: Any) -> Tensor | None:
    """The operator call for ``x`` (N, C, H, W), or None when the plain modules have to be traced."""
    if switch.depth or not isinstance(x, Tensor) or x.dim() != 4 or x.device.type not in ("cpu", "cuda"):
        return None
    if x.device.type == "cpu" and chain.no_kernel is not None:
        return None
    if x.shape[1] != chain.in_channels or x.layout != torch.strided:
        return None
    on_cpu = x.device.type == "cpu"
    program, constants, sources, modes, classes, training = chain.key.split(_FIELD)
    plain = not (torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or is_exporting())
    if chain.sealed and plain and on_cpu and x.dtype == torch.float32:
        return _run(_ops.chain.default, x, [], chain.slot.tensor, program, constants)
    in_training = False
    for path, kind in _pairs(modes):
        part = _lookup(module, path)
        if part is None:
            return None
        if part.training:
            in_training = True
            if not (training and on_cpu) or isinstance(part, nn.SyncBatchNorm):
                return None
            if kind == "drop" and not inactive(part):
                return None
    for path, name in _pairs(classes):
        part = _lookup(module, path)
        if part is None or _class_name(plain_class(part)) != name:
            return None
        if part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks:
            return None
    tensors: list[Any] = [getattr(_lookup(module, path), name, None) for path, name in _pairs(sources)]
    for tensor in tensors:
        if tensor is None:
            return None
    dtype = None
    if torch.is_autocast_enabled(x.device.type):
        if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            return None
        dtype = chain.autocast_dtype(x)
        x = x.float() if on_cpu else x.to(torch.get_autocast_dtype("cuda"))
    elif x.dtype not in ((torch.float32,) if on_cpu else (torch.float32, torch.bfloat16, torch.float16)):
        return None
    for tensor in tensors:
        if tensor.device != x.device or (tensor.is_floating_point() and tensor.dtype not in (x.dtype, torch.float32)):
            return None
    grad = torch.is_grad_enabled() and (x.requires_grad or any(t.requires_grad for t in tensors))
    if training and on_cpu and (grad or in_training):
        steps = _steps(training)
        slots = [None if is_exporting() else slot.tensor for slot in chain.step_slots]
        y = run_steps(steps, lambda path: _lookup(module, path), x, tensors, slots)
        if chain.follow_input and y.dim() == 4:
            y = in_format_of(y, x)
        return y if dtype is None else y.to(dtype)
    slot = None if is_exporting() else chain.graph_slot.tensor
    op = _ops.chain_grad.default if grad else _ops.chain.default
    y = _run(op, x, tensors, slot, program, constants)
    return y if dtype is None else y.to(dtype)


def _run(op: Any, x: Tensor, tensors: list[Any], slot: Tensor | None, program: str, constants: str) -> Tensor:
    codes = [int(code) for code in program.split(_ITEM)]
    result: Tensor = op(x, tensors, slot, codes, [float(number) for number in constants.split(_ITEM)])
    return result
