"""The training path of a fused chain: block by block through ``mobilenet_ext::train_block``, running statistics after.

Each BatchNorm's own mode decides between batch and running statistics.  The running ones are updated by torch
operations on the module's buffers, in PyTorch's way (momentum, ``momentum=None``, ``num_batches_tracked``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobilenet_ext.spec import CLAMPS, BlockSpec, ChainItem, LinearSpec, PoolSpec, encode

if TYPE_CHECKING:
    from mobilenet_ext.matchers import Match

_train_block = torch.ops.mobilenet_ext.train_block.default


class Step(NamedTuple):
    """One item of a chain: a block as the operator takes it, or (``program`` empty) the classifier or a bare pool.

    ``sources`` of the chain's flat list belong to it; ``norms`` holds for each stage the path of its BatchNorm and its
    number of channels, None where there is none.
    """

    program: tuple[int, ...]
    constants: tuple[float, ...]
    sources: tuple[int, int]
    norms: tuple[tuple[str, int] | None, ...]
    pool: bool


def no_training_kernel(chain: Sequence[ChainItem]) -> str | None:
    """What of a chain the training kernels do not cover, or None."""
    for item in chain:
        if isinstance(item, LinearSpec) and (item.activation != "none" or "running_mean" in item.sources):
            return "a linear layer with BatchNorm or an activation"
        if not isinstance(item, BlockSpec):
            continue
        if item.squeezed:
            return "squeeze-and-excitation"
        if item.residual_back:
            return "a shortcut over two items"
        other = next((spec.activation for _, spec in item.stages() if spec.activation not in CLAMPS), None)
        if other is not None:
            return f"the activation {other}"
    return None


def steps_of(match: Match) -> tuple[Step, ...]:
    """The steps of a chain, none if no training kernel takes it; a pool is taken off its block, which training does
    not fuse."""
    if no_training_kernel(match.chain) is not None:
        return ()
    steps: list[Step] = []
    at = 0
    for item in match.chain:
        first = at
        if isinstance(item, LinearSpec):
            at += len(item.sources)
            steps.append(Step((), (), (first, at), (), False))
            continue
        if isinstance(item, PoolSpec):
            steps.append(Step((), (), (first, at), (), True))
            continue
        norms: list[tuple[str, int] | None] = []
        for _, spec in item.stages():
            here = match.sources[at : at + len(spec.sources)]
            named = dict(zip(spec.sources, here, strict=True))
            norms.append((named["running_mean"].path, spec.out_channels) if spec.has_bn else None)
            at += len(spec.sources)
        block = BlockSpec(item.expand, item.depthwise, item.project, residual=item.residual)
        program, constants = encode((block,))
        steps.append(Step(tuple(program), tuple(constants), (first, at), tuple(norms), item.pool))
    return tuple(steps)


def inactive(module: Any) -> bool:
    """Whether a dropout or drop path (or a model that applies one itself) is the identity in training too."""
    for name in ("drop_prob", "p", "drop_rate"):
        value = getattr(module, name, None)
        if isinstance(value, (int, float)):
            return value == 0
    return type(module) is nn.Identity


def training_reason(module: nn.Module, norms: Sequence[str], identities: Sequence[str]) -> str | None:
    """Why the modes inside rule the training path out, or None."""
    for path in identities:
        part = module.get_submodule(path)
        if part.training and not inactive(part):
            return f"training: {path or 'the module itself'} drops values"
    for path in norms:
        norm = module.get_submodule(path)
        if norm.training and isinstance(norm, nn.SyncBatchNorm):
            return f"training: {path} is a {type(norm).__name__}, which PyTorch runs"
    return None


def run_steps(
    steps: Sequence[Step],
    lookup: Callable[[str], Any],
    x: Tensor,
    tensors: Sequence[Tensor],
    slots: Sequence[Tensor | None],
) -> Tensor:
    """The chain on ``x`` (N, C, H, W); channels_last, or (N, features) after its pool.

    ``lookup`` gives the submodule at a path.
    """
    for step, slot in zip(steps, slots, strict=True):
        own = list(tensors[step.sources[0] : step.sources[1]])
        if not step.program:
            x = x.mean((2, 3)) if step.pool else F.linear(x, own[0].flatten(1), own[1] if len(own) > 1 else None)
            continue
        norms: list[Any] = [None if norm is None else lookup(norm[0]) for norm in step.norms]
        batch = [int(norm is not None and norm.training) for norm in norms]
        x, _, _, stats = _train_block(x, own, slot, list(step.program), list(step.constants), batch)
        if any(batch):
            _update(norms, batch, [0 if norm is None else norm[1] for norm in step.norms], stats.detach())
        if step.pool:
            x = x.mean((2, 3))
    return x


def _update(norms: Sequence[Any], batch: Sequence[int], channels: Sequence[int], stats: Tensor) -> None:
    at = 0
    for norm, is_batch, width in zip(norms, batch, channels, strict=True):
        if not is_batch:
            continue
        mean, unbiased = stats[0, at : at + width], stats[2, at : at + width]
        at += width
        if norm.track_running_stats and norm.running_mean is not None:
            update_running(norm, mean, unbiased)


def update_running(norm: Any, mean: Tensor, unbiased: Tensor) -> None:
    """What ``torch.nn.BatchNorm2d`` does to its buffers after a batch with these statistics (float64)."""
    with torch.no_grad():
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
        update_vectors(norm.running_mean, norm.running_var, mean, unbiased, norm.momentum, norm.num_batches_tracked)


def update_vectors(
    running_mean: Tensor,
    running_var: Tensor,
    mean: Tensor,
    unbiased: Tensor,
    momentum: float | None,
    batches: Tensor | None,
) -> None:
    """In place; without a momentum the average over all ``batches`` so far (none counted: nothing changes)."""
    for running, new in ((running_mean, mean), (running_var, unbiased)):
        if momentum is not None:
            running.mul_(1 - momentum).add_(new.to(running.dtype), alpha=momentum)
        elif batches is not None:
            running.add_((new.to(running.dtype) - running) / batches)
