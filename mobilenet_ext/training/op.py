"""``mobilenet_ext::train_block``: the differentiable operator of one block, opaque to ``torch.compile``.

Gradients are those of the first order; a second differentiation raises.  Under autocast the arithmetic stays float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mobilenet_ext.backends.aten import split
from mobilenet_ext.freshness import bump_epoch
from mobilenet_ext.memory_format import channels_last
from mobilenet_ext.spec import CLAMPS, BlockSpec, decode
from mobilenet_ext.training import backward, block
from mobilenet_ext.training.backward import Backward, Needs
from mobilenet_ext.training.block import Block, Stats, is_first_convolution, is_pointwise

_ops = torch.ops.mobilenet_ext
_NO_SECOND = (
    "fused training has first derivatives only; for a second differentiation run the model inside "
    "mobilenet_ext.disabled() or fuse it with training=False"
)


@lru_cache(maxsize=1024)
def _has_native(program: tuple[int, ...], constants: tuple[float, ...], dx: bool) -> bool:
    """Whether csrc/cpu/train_forward.cpp takes the block (its ``trains``, which raises for others), and with ``dx``
    train_backward.cpp makes its input's gradient too."""
    (spec,) = decode(program, constants).chain
    if not isinstance(spec, BlockSpec) or spec.pool or spec.squeezed or spec.residual_back:
        return False
    if any(stage.activation not in CLAMPS for _, stage in spec.stages()):
        return False
    dense = [stage for stage in (spec.expand, spec.project) if stage is not None]
    return all(is_pointwise(s) or (s is spec.expand and is_first_convolution(s) and not dx) for s in dense)


def _runs_native(
    x: Tensor,
    sources: Sequence[Tensor],
    program: Sequence[int],
    constants: Sequence[float],
    batch: Sequence[int],
    dx: bool,
) -> bool:
    key = (tuple(program), tuple(constants))
    read = _kept(*key, tuple(batch))
    return (
        x.dtype == torch.float32
        and x.numel() > 0
        and all(s.dtype == torch.float32 for s, is_read in zip(sources, read, strict=True) if is_read)
        and _has_native(*key, dx)
    )


def _dense(sources: Sequence[Tensor]) -> list[Tensor]:
    return [s if s.is_contiguous() else s.contiguous() for s in sources]


def _read(
    program: Sequence[int], constants: Sequence[float], sources: Sequence[Tensor]
) -> tuple[BlockSpec, list[dict[str, Tensor]]]:
    ((spec, tensors),) = split(decode(program, constants).chain, sources)
    assert isinstance(spec, BlockSpec)
    return spec, tensors


def _check_count(spec: BlockSpec, x: Tensor, batch: Sequence[int]) -> None:
    """BatchNorm's own error where a channel has a single value."""
    height, width = x.shape[2], x.shape[3]
    for (_, stage), is_batch in zip(spec.stages(), batch, strict=True):
        height, width = stage.output_size(height, width)
        if is_batch and x.shape[0] * height * width == 1:
            size = [x.shape[0], stage.out_channels, height, width]
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {size}")


def _count(spec: BlockSpec, x: Tensor, batch: Sequence[int]) -> list[int]:
    height, width, counts = x.shape[2], x.shape[3], []
    for (_, stage), is_batch in zip(spec.stages(), batch, strict=True):
        height, width = stage.output_size(height, width)
        if is_batch:
            counts.append(x.shape[0] * height * width)
    return counts


def _forward(
    x: Tensor,
    sources: list[Tensor],
    slot: Tensor | None,
    program: list[int],
    constants: list[float],
    batch: list[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        spec, tensors = _read(program, constants, sources)
        none = x.new_empty(0)
        if not any(batch) and x.dtype == torch.float32:
            y = _ops.chain(x, sources, slot, program, constants)
            return y, none, none.clone(), none.double()
        _check_count(spec, x, batch)
        if any(batch) and _runs_native(x, sources, program, constants, batch, False):
            y, v, p, rows = _ops.train_block_forward_native(
                channels_last(x), _dense(sources), program, constants, batch, block.CHUNK_BYTES
            )
            return y, v, p, rows
        run = Block(spec, channels_last(x), tensors, [bool(b) for b in batch])
        y, v, p, stats = run.forward()
        if not any(batch):
            return y, none, none.clone(), none.double()
        counts = _count(spec, x, batch)
        unbiased = [var * (n / (n - 1) if n > 1 else 1.0) for (_, var), n in zip(stats, counts, strict=True)]
        columns = [torch.cat(row) for row in ([mean for mean, _ in stats], [var for _, var in stats], unbiased)]
        return y, v, p, torch.stack(columns)


def _fake_forward(
    x: Tensor,
    sources: list[Tensor],
    slot: Tensor | None,
    program: list[int],
    constants: list[float],
    batch: list[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    spec, _ = _read(program, constants, sources)
    sizes = []
    height, width = x.shape[2], x.shape[3]
    for _, stage in spec.stages():
        height, width = stage.output_size(height, width)
        sizes.append((x.shape[0], stage.out_channels, height, width))

    def image(size: tuple[int, int, int, int]) -> Tensor:
        return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)

    y, v, p = image(sizes[-1]), x.new_empty(0), x.new_empty(0)
    stats = x.new_empty(0, dtype=torch.float64)
    if any(batch):
        roles = [role for role, _ in spec.stages()]
        if "depthwise" in roles:
            v = image(sizes[roles.index("depthwise")])
        if roles[-1] != "depthwise":
            p = image(sizes[-1])
        channels = sum(stage.out_channels for (_, stage), b in zip(spec.stages(), batch, strict=True) if b)
        stats = x.new_empty((3, channels), dtype=torch.float64)
    return y, v, p, stats


class BackwardCall(NamedTuple):
    """The arguments of ``train_block_backward``."""

    g: Tensor
    x: Tensor
    v: Tensor
    p: Tensor
    stats: Tensor
    sources: list[Tensor]
    program: list[int]
    constants: list[float]
    batch: list[int]
    needs: list[int]


def _backward(
    g: Tensor,
    x: Tensor,
    v: Tensor,
    p: Tensor,
    stats: Tensor,
    sources: list[Tensor],
    program: list[int],
    constants: list[float],
    batch: list[int],
    needs: list[int],
) -> list[Tensor]:
    bump_epoch()  # whoever called backward may now write to parameters in ways that leave no trace
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        call = BackwardCall(g, x, v, p, stats, sources, program, constants, batch, needs)
        native = _runs_native(x, sources, program, constants, batch, bool(needs[0]))
        if native and backward.recorder is not None:
            run_python(call)  # records the masks
        return run_native(call) if native else run_python(call)


def run_native(call: BackwardCall) -> list[Tensor]:
    g, x, v, p, stats, sources, program, constants, batch, needs = call
    x = channels_last(x)
    sources = _dense(sources)
    grads = [torch.empty_like(x, memory_format=torch.channels_last) if needs[0] else x.new_empty(0)]
    for source, needed in zip(sources, needs[1:], strict=True):
        grads.append(torch.empty_like(source) if needed else x.new_empty(0))
    kept = [t if t.numel() else None for t in (v, p)]
    _ops.train_block_backward_native(
        channels_last(g), x, *kept, stats, sources, program, constants, batch, block.CHUNK_BYTES, grads
    )
    return grads


def run_python(call: BackwardCall) -> list[Tensor]:
    g, x, v, p, stats, sources, program, constants, batch, needs = call
    spec, tensors = _read(program, constants, sources)
    pairs: list[Stats] = []
    at = 0
    for (_, stage), is_batch in zip(spec.stages(), batch, strict=True):
        if is_batch:
            pairs.append((stats[0, at : at + stage.out_channels], stats[1, at : at + stage.out_channels]))
            at += stage.out_channels
    wanted = iter(needs)
    need_x = bool(next(wanted))
    named = {role: {name: bool(next(wanted)) for name in stage.sources} for role, stage in spec.stages()}
    weights = {role: names["weight"] for role, names in named.items()}
    run = Block(spec, channels_last(x), tensors, [bool(b) for b in batch])
    kept = [t if t.numel() or t.dim() != 1 else None for t in (v, p)]
    grads = Backward(run, g, kept[0], kept[1], pairs, Needs(need_x, weights)).run()
    none = x.new_empty(0)
    result = [none if grads.x is None else channels_last(grads.x)]
    flat = [(role, name) for role, stage in spec.stages() for name in stage.sources]
    for (role, name), source in zip(flat, sources, strict=True):
        found = grads.stages[role].get(name) if named[role][name] else None
        result.append(none.clone() if found is None else found.reshape(source.shape).contiguous())
    return result


def _fake_backward(
    g: Tensor,
    x: Tensor,
    v: Tensor,
    p: Tensor,
    stats: Tensor,
    sources: list[Tensor],
    program: list[int],
    constants: list[float],
    batch: list[int],
    needs: list[int],
) -> list[Tensor]:
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    result = [dx if needs[0] else x.new_empty(0)]
    for source, needed in zip(sources, needs[1:], strict=True):
        result.append(x.new_empty(source.shape if needed else (0,)))
    return result


@lru_cache(maxsize=1024)
def _kept(program: tuple[int, ...], constants: tuple[float, ...], batch: tuple[int, ...]) -> list[bool]:
    """Which sources the backward reads."""
    (spec,) = decode(program, constants).chain
    assert isinstance(spec, BlockSpec)
    kept: list[bool] = []
    for (_, stage), is_batch in zip(spec.stages(), batch, strict=True):
        unread = ("num_batches_tracked", "running_mean", "running_var")[: 3 if is_batch else 1]
        kept += [name not in unread for name in stage.sources]
    return kept


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, sources, _, ctx.program, ctx.constants, ctx.batch = inputs
    _, v, p, stats = output
    ctx.mark_non_differentiable(v, p, stats)
    ctx.set_materialize_grads(False)
    ctx.needs = [int(x.requires_grad), *(int(s.requires_grad) for s in sources)]
    # Statistics that this step goes on to change are not what it computed with, and no backward reads them.
    ctx.kept = _kept(tuple(ctx.program), tuple(ctx.constants), tuple(ctx.batch))
    ctx.save_for_backward(x, v, p, stats, *(source for source, kept in zip(sources, ctx.kept, strict=True) if kept))


def _autograd(ctx: Any, g: Tensor | None, *_: Any) -> tuple[Any, ...]:
    if g is None:
        return None, [None] * (len(ctx.needs) - 1), None, None, None, None
    x, v, p, stats, *saved = ctx.saved_tensors
    remaining = iter(saved)
    sources = [next(remaining) if kept else stats for kept in ctx.kept]
    dx, *rest = _ops.train_block_backward(
        g.to(x.dtype), x, v, p, stats, sources, ctx.program, ctx.constants, ctx.batch, ctx.needs
    )
    grads = [grad if needed else None for grad, needed in zip(rest, ctx.needs[1:], strict=True)]
    return (dx if ctx.needs[0] else None), grads, None, None, None, None


def _refuse(ctx: Any, *grads: Any) -> None:
    raise RuntimeError(_NO_SECOND)


def register() -> None:
    """Give the operators of ``csrc/library.cpp`` their implementation, fakes and gradients."""
    torch.library.impl("mobilenet_ext::train_block", "CPU", _forward)
    torch.library.impl("mobilenet_ext::train_block_backward", "CPU", _backward)
    torch.library.register_fake("mobilenet_ext::train_block", _fake_forward)
    torch.library.register_fake("mobilenet_ext::train_block_backward", _fake_backward)
    torch.library.register_autograd("mobilenet_ext::train_block", _autograd, setup_context=_setup_context)
    torch.library.register_autograd(
        "mobilenet_ext::train_block_backward", _refuse, setup_context=lambda ctx, inputs, output: None
    )
