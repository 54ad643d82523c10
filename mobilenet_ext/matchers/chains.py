"""Operations on chains under construction: join stages into blocks, add the shortcut, the pool and the last checks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from torch import Tensor, nn

from mobilenet_ext.matchers.common import Match, Piece, RefusedError, join
from mobilenet_ext.spec import BlockSpec, ChainItem, ConvSpec, LinearSpec


def _is_pointwise(spec: ConvSpec) -> bool:
    return spec.kernel == (1, 1) and spec.stride == (1, 1) and spec.padding == (0, 0, 0, 0)


def _joined(first: ChainItem, second: ChainItem) -> BlockSpec | None:
    """The two as one block, or None where no block of three stages computes both."""
    if isinstance(first, LinearSpec) or isinstance(second, LinearSpec):
        return None
    if first.residual or first.pool or second.residual or second.pool:
        return None
    if first.project is None and first.depthwise is None and second.expand is None:
        return replace(second, expand=first.expand)
    ends_depthwise = first.project is None and first.depthwise is not None
    if ends_depthwise and second.depthwise is None and second.expand is not None and _is_pointwise(second.expand):
        return replace(first, project=second.expand)
    return None


def merge_stem(chain: Sequence[ChainItem]) -> tuple[ChainItem, ...]:
    """Join neighbouring items into whole blocks, so that one kernel runs them and nothing between reaches memory.

    A lone dense convolution (a stem of any kernel size) becomes the expand stage of a following block that has none
    and no shortcut; a block that ends in its depthwise stage takes a following lone 1x1 convolution as its project.
    The flat order of the sources does not change.
    """
    merged: list[ChainItem] = []
    for item in chain:
        whole = _joined(merged[-1], item) if merged else None
        if whole is None:
            merged.append(item)
        else:
            merged[-1] = whole
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
    """A piece of one block with its input added; refused where input and output differ in channels or size."""
    (block,) = piece.items
    assert isinstance(block, BlockSpec)
    if block.in_channels != block.out_channels:
        raise RefusedError(f"its shortcut joins {block.in_channels} and {block.out_channels} channels")
    if block.output_size(64, 96) != (64, 96):
        size = "x".join(map(str, block.output_size(64, 96)))
        raise RefusedError(f"its shortcut joins a 64x96 input and a {size} output")
    return replace(piece, items=(replace(block, residual=True),))


def pooled(piece: Piece) -> Piece:
    """The piece followed by the mean over H and W, which a lone 1x1 convolution takes in.

    A last block with a project stage is split before it, so that the project is that convolution.
    """
    items = merge_stem(piece.items)
    last = items[-1] if items else None
    if not isinstance(last, BlockSpec) or last.residual or last.pool:
        raise RefusedError("its pooling does not follow a convolution without shortcut")
    if last.project is not None:
        tail: tuple[ChainItem, ...] = (replace(last, project=None), BlockSpec(expand=last.project, pool=True))
    elif last.depthwise is None and last.expand is not None and last.expand.kernel == (1, 1):
        tail = (replace(last, pool=True),)
    else:
        raise RefusedError("its pooling does not follow a 1x1 convolution")
    return replace(piece, items=items[:-1] + tail)


def _check_fit(items: Sequence[ChainItem]) -> None:
    width, is_pooled = None, False
    for item in items:
        linear = isinstance(item, LinearSpec)
        wanted = item.in_features if isinstance(item, LinearSpec) else item.in_channels
        if linear != is_pooled:
            raise RefusedError("its classifier does not follow the pooling")
        if width is not None and width != wanted:
            raise RefusedError(f"its parts do not fit: {width} channels feed a part that takes {wanted}")
        width = item.out_features if isinstance(item, LinearSpec) else item.out_channels
        is_pooled = is_pooled or linear or (isinstance(item, BlockSpec) and item.pool)


def finish(module: nn.Module, piece: Piece, level: str, children: Iterable[str] | None = None) -> Match:
    """The match for ``module``, or for those of its ``children``; stages of neighbours are joined."""
    items = merge_stem(piece.items)
    _check_fit(items)
    skipped: list[str] = []
    for name in module._modules if children is None else children:
        child = module._modules[name]
        if child is not None:
            skipped += [join(name, path) for path, _ in child.named_modules(remove_duplicate=False)]
    return Match(items, piece.sources, level, piece.norms, piece.identities, tuple(skipped))


def source_tensors(module: nn.Module, match: Match) -> list[Tensor]:
    """The chain's tensors as they are now, in the order of ``match.sources``."""
    return [getattr(module.get_submodule(source.path), source.name) for source in match.sources]
