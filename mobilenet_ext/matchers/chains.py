"""Operations on chains under construction: join stages into blocks, add the shortcut, the pool and the last checks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from torch import Tensor, nn

from mobilenet_ext.matchers.common import Match, Piece, PieceItem, RefusedError, SqueezeItem, join
from mobilenet_ext.spec import CLAMPS, BlockSpec, ChainItem, ConvSpec, LinearSpec, PoolSpec


def _is_pointwise(spec: ConvSpec) -> bool:
    return spec.kernel == (1, 1) and spec.stride == (1, 1) and spec.padding == (0, 0, 0, 0)


def _joined(first: PieceItem, second: PieceItem) -> BlockSpec | None:
    """The two as one block, or None where no block of three stages computes both."""
    if not isinstance(first, BlockSpec) or not isinstance(second, BlockSpec):
        return None
    if first.residual or first.residual_back or first.pool or second.residual or second.residual_back or second.pool:
        return None
    if first.project is None and first.depthwise is None and second.expand is None:
        return replace(second, expand=first.expand)
    ends_depthwise = first.project is None and first.depthwise is not None
    if ends_depthwise and second.depthwise is None and second.expand is not None and _is_pointwise(second.expand):
        return replace(first, project=second.expand)
    return None


def _squeezed(first: PieceItem, squeeze: PieceItem, second: PieceItem) -> BlockSpec | None:
    """A block that ends in its depthwise stage, squeeze-and-excitation and a lone 1x1 convolution as one block."""
    if not isinstance(squeeze, SqueezeItem) or not isinstance(first, BlockSpec) or not isinstance(second, BlockSpec):
        return None
    block = _joined(first, second) if first.depthwise is not None and second.depthwise is None else None
    if block is None or block.depthwise is None or squeeze.reduce.in_channels != block.depthwise.out_channels:
        return None
    return replace(block, reduce=squeeze.reduce, excite=squeeze.excite)


def merge_stem(chain: Sequence[PieceItem]) -> tuple[PieceItem, ...]:
    """Join neighbouring items into whole blocks, so that one kernel runs them and nothing between reaches memory.

    A lone dense convolution (a stem of any kernel size) becomes the expand stage of a following block that has none
    and no shortcut; a block that ends in its depthwise stage takes a following lone 1x1 convolution as its project.
    The flat order of the sources does not change.
    """
    merged: list[PieceItem] = []
    for index, item in enumerate(chain):
        following = chain[index + 1] if index + 1 < len(chain) else None
        starts_shortcut = isinstance(following, BlockSpec) and following.residual_back
        squeezed = _squeezed(merged[-2], merged[-1], item) if len(merged) > 1 else None
        whole = _joined(merged[-1], item) if merged and not starts_shortcut else None
        if squeezed is not None:
            merged[-2:] = [squeezed]
        elif whole is not None:
            merged[-1] = whole
        else:
            merged.append(item)
    return tuple(merged)


def as_block(piece: Piece, residual: bool) -> Piece:
    """The piece as exactly one block with a depthwise and a project stage, and its shortcut; refused otherwise."""
    items = merge_stem(piece.items)
    block = items[0] if len(items) == 1 else None
    if not isinstance(block, BlockSpec) or block.depthwise is None or block.project is None:
        raise RefusedError("its convolutions are not (expand,) depthwise, project")
    piece = replace(piece, items=items)
    return with_shortcut(piece) if residual else piece


def with_shortcut(piece: Piece) -> Piece:
    """A piece of one or two blocks with its input added; refused where input and output differ in channels or size."""
    blocks = [item for item in piece.items if isinstance(item, BlockSpec)]
    if len(blocks) != len(piece.items) or len(blocks) not in (1, 2):
        raise RefusedError("its shortcut is around more than two blocks")
    if blocks[0].in_channels != blocks[-1].out_channels:
        raise RefusedError(f"its shortcut joins {blocks[0].in_channels} and {blocks[-1].out_channels} channels")
    size = (64, 96)
    for block in blocks:
        size = block.output_size(*size)
    if size != (64, 96):
        raise RefusedError(f"its shortcut joins a 64x96 input and a {size[0]}x{size[1]} output")
    if len(blocks) == 1:
        return replace(piece, items=(replace(blocks[0], residual=True),))
    *_, (_, last) = blocks[1].stages()
    if last.depthwise:
        raise RefusedError("its shortcut is around two blocks and follows a depthwise convolution")
    if last.activation not in CLAMPS:
        raise RefusedError(f"its shortcut is around two blocks and follows the activation {last.activation}")
    return replace(piece, items=(blocks[0], replace(blocks[1], residual_back=True)))


def in_blocks(piece: Piece, residual: bool) -> Piece:
    """The piece as one block, or as two where one cannot compute it, with its shortcut."""
    piece = replace(piece, items=merge_stem(piece.items))
    return with_shortcut(piece) if residual else piece


def pooled(piece: Piece) -> Piece:
    """The piece followed by the mean over H and W, which a lone 1x1 convolution without shortcut takes in.

    A last block with a project stage is split before it, so that the project is that convolution.
    """
    items = merge_stem(piece.items)
    last = items[-1] if items else None
    if not isinstance(last, BlockSpec) or last.pool:
        raise RefusedError("its pooling does not follow a convolution")
    shortcut = last.residual or last.residual_back
    tail: tuple[PieceItem, ...]
    if last.project is not None and not shortcut and not last.squeezed:
        tail = (replace(last, project=None), BlockSpec(expand=last.project, pool=True))
    elif last.depthwise is None and last.expand is not None and last.expand.kernel == (1, 1) and not shortcut:
        tail = (replace(last, pool=True),)
    else:
        tail = (last, PoolSpec(last.out_channels))
    return replace(piece, items=items[:-1] + tail)


def _check_fit(items: Sequence[PieceItem]) -> tuple[ChainItem, ...]:
    width, is_pooled = None, False
    checked: list[ChainItem] = []
    for item in items:
        if isinstance(item, SqueezeItem):
            raise RefusedError("its squeeze-and-excitation does not stand between a depthwise and a 1x1 convolution")
        linear = isinstance(item, LinearSpec)
        wanted = item.in_features if isinstance(item, LinearSpec) else item.in_channels
        if linear != is_pooled:
            raise RefusedError("its classifier does not follow the pooling")
        if width is not None and width != wanted:
            raise RefusedError(f"its parts do not fit: {width} channels feed a part that takes {wanted}")
        width = item.out_features if isinstance(item, LinearSpec) else item.out_channels
        is_pooled = is_pooled or not isinstance(item, BlockSpec) or item.pool
        checked.append(item)
    return tuple(checked)


def finish(module: nn.Module, piece: Piece, level: str, children: Iterable[str] | None = None) -> Match:
    """The match for ``module``, or for those of its ``children``; stages of neighbours are joined."""
    items = _check_fit(merge_stem(piece.items))
    skipped: list[str] = []
    for name in module._modules if children is None else children:
        child = module._modules[name]
        if child is not None:
            skipped += [join(name, path) for path, _ in child.named_modules(remove_duplicate=False)]
    return Match(items, piece.sources, level, piece.norms, piece.identities, tuple(skipped))


def source_tensors(module: nn.Module, match: Match) -> list[Tensor]:
    """The chain's tensors as they are now, in the order of ``match.sources``."""
    return [getattr(module.get_submodule(source.path), source.name) for source in match.sources]
