"""Matches ``nn.Sequential``: user-made Conv2d, BatchNorm2d, activation patterns, and runs of matched blocks.

Everything that keeps its layers in a Sequential (torchvision's Conv2dNormActivation, MNASNet's flat stacks, the
``features`` of a MobileNet) is read here; the other matchers add only what their library's ``forward`` does around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from mobilenet_ext.matchers.chains import as_block, finish, in_blocks, merge_stem, pooled
from mobilenet_ext.matchers.common import (
    Activation,
    Match,
    Piece,
    Recurse,
    Refusal,
    RefusedError,
    Run,
    is_a,
    optional_class,
    read_activation,
    read_identity,
    read_linear,
    read_squeeze,
    read_stage,
)

_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm)
_DROPOUTS = (nn.Dropout, nn.Dropout2d)
Children = Sequence[tuple[str, nn.Module]]


@dataclass(frozen=True)
class _Unit:
    """Children [start, stop) that form one piece; ``layers`` is False once a matched block is among them."""

    start: int
    stop: int
    piece: Piece
    layers: bool = True


@dataclass(frozen=True)
class _Gap:
    """A child that is no part of any chain."""

    index: int
    reason: str


def _is_activation(module: nn.Module) -> bool:
    return type(module).__module__.startswith(("torch.nn.modules.activation", "timm.layers.activations"))


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, (nn.Conv2d, *_NORMS, *_DROPOUTS, nn.Identity)) or _is_activation(module)


def _read_convolution(children: Children, start: int) -> _Unit:
    """The convolution at ``start`` with the BatchNorm and the activation that follow it."""
    path, conv = children[start]
    stop = start + 1
    norm_path, norm = children[stop] if stop < len(children) else ("", None)
    if not isinstance(norm, _BatchNorm):
        norm_path, norm = "", None
    else:
        stop += 1
    activation = Activation()
    if stop < len(children) and _is_activation(children[stop][1]):
        activation = read_activation(children[stop][1], children[stop][0])
        stop += 1
    return _Unit(start, stop, read_stage(conv, path, norm, norm_path, activation))


def _read_child(children: Children, index: int, recurse: Recurse) -> _Unit:
    name, child = children[index]
    if isinstance(child, nn.Conv2d):
        return _read_convolution(children, index)
    if isinstance(child, (nn.Identity, *_DROPOUTS)):
        return _Unit(index, index + 1, read_identity(child, name))
    if isinstance(child, nn.Sequential) and is_a(child, nn.Sequential):
        piece, layers = _read(child, recurse)
        return _Unit(index, index + 1, piece.under(name), layers)
    squeeze = _read_squeeze(child, name)
    if squeeze is not None:
        return _Unit(index, index + 1, squeeze, layers=False)
    match = recurse(child)
    if isinstance(match, Match) and match.level == "block":
        piece = Piece(match.chain, match.sources, match.norms, match.identities)
        return _Unit(index, index + 1, piece.under(name), layers=False)
    reason = f": {match.reason}" if isinstance(match, Refusal) else ", which no fused kernel covers"
    raise RefusedError(f"{name} is a {type(child).__name__}{reason}")


# Squeeze-and-excitation modules: where they are defined, their name, and their two convolutions with what follows each.
_SQUEEZES = (
    ("torchvision.ops.misc", "SqueezeExcitation", ("fc1", "activation", "fc2", "scale_activation")),
    ("timm.models._efficientnet_blocks", "SqueezeExcite", ("conv_reduce", "act1", "conv_expand", "gate")),
    ("timm.layers.squeeze_excite", "SEModule", ("fc1", "act", "fc2", "gate")),
)


def _read_squeeze(module: nn.Module, path: str) -> Piece | None:
    """A library's squeeze-and-excitation, seen from its parent; None for any other module."""
    for where, name, names in _SQUEEZES:
        if not is_a(module, optional_class(where, name)):
            continue
        if getattr(module, "add_maxpool", False) or type(getattr(module, "bn", nn.Identity())) is not nn.Identity:
            raise RefusedError(f"{path} is a {name} with a max pool or a norm; allowed: the mean and two convolutions")
        first, act, second, gate = (getattr(module, part) for part in names)
        return read_squeeze(path, first, act, second, gate, names)
    return None


def read_optional_squeeze(module: nn.Module, path: str) -> Piece:
    """Squeeze-and-excitation or nothing, seen from the parent; refused where it is something else."""
    if type(module) is nn.Identity:
        return Piece()
    piece = _read_squeeze(module, path)
    if piece is None:
        raise RefusedError(f"{path} is a {type(module).__name__}; allowed: squeeze-and-excitation")
    return piece


def _scan(children: Children, recurse: Recurse) -> list[_Unit | _Gap]:
    found: list[_Unit | _Gap] = []
    index = 0
    while index < len(children):
        try:
            unit = _read_child(children, index, recurse)
            found.append(unit)
            index = unit.stop
        except RefusedError as refused:
            found.append(_Gap(index, str(refused)))
            index += 1
    return found


def _children(sequential: nn.Sequential) -> Children:
    return [(name, child) for name, child in sequential._modules.items() if child is not None]


def _read(sequential: nn.Sequential, recurse: Recurse) -> tuple[Piece, bool]:
    piece, layers = Piece(), True
    for part in _scan(_children(sequential), recurse):
        if isinstance(part, _Gap):
            raise RefusedError(part.reason)
        piece, layers = piece + part.piece, layers and part.layers
    return piece, layers


def read_all(sequential: nn.Module, path: str, recurse: Recurse) -> Piece:
    """Every child of a Sequential as one piece seen from its parent; refused with the first child that is no part."""
    if not is_a(sequential, nn.Sequential):
        raise RefusedError(f"{path} is a {type(sequential).__name__}; allowed: Sequential")
    assert isinstance(sequential, nn.Sequential)
    try:
        return _read(sequential, recurse)[0].under(path)
    except RefusedError as refused:
        raise RefusedError(f"{path}.{refused}") from None


def read_block(sequential: nn.Module, path: str, recurse: Recurse, residual: bool) -> Piece:
    """A Sequential that holds exactly (expand,) depthwise, (squeeze-and-excitation,) project, with the shortcut."""
    return as_block(read_all(sequential, path, recurse), residual)


def read_fused_block(sequential: nn.Module, path: str, recurse: Recurse, residual: bool) -> Piece:
    """A Sequential of a dense convolution and perhaps a 1x1 one, with the shortcut around it."""
    return in_blocks(read_all(sequential, path, recurse), residual)


def read_classifier(module: nn.Module, path: str) -> Piece:
    """A Linear, or a Sequential of Linear, activations and Dropout, seen from its parent."""
    if not isinstance(module, nn.Sequential):
        return read_linear(module, path)
    is_a(module, nn.Sequential)
    piece = Piece()
    children = _children(module)
    index = 0
    while index < len(children):
        name, child = children[index]
        index += 1
        if not isinstance(child, nn.Linear):
            piece += read_identity(child, f"{path}.{name}")
            continue
        activation = Activation()
        if index < len(children) and _is_activation(children[index][1]):
            activation = read_activation(children[index][1], f"{path}.{children[index][0]}")
            index += 1
        piece += read_linear(child, f"{path}.{name}", activation)
    return piece


def _match_network(sequential: nn.Sequential, recurse: Recurse) -> Match | None:
    """Features, AdaptiveAvgPool2d(1), Flatten and a classifier, all in one Sequential."""
    children = _children(sequential)
    pools = [index for index, (_, child) in enumerate(children) if type(child) is nn.AdaptiveAvgPool2d]
    if not pools or pools[0] + 1 >= len(children):
        return None
    pool, flatten = children[pools[0]][1], children[pools[0] + 1][1]
    if pool.output_size not in (1, (1, 1)) or type(flatten) is not nn.Flatten:
        return None
    if (flatten.start_dim, flatten.end_dim) not in ((1, -1), (1, 3)):
        return None
    piece = Piece()
    for part in _scan(children[: pools[0]], recurse):
        if isinstance(part, _Gap):
            raise RefusedError(part.reason)
        piece += part.piece
    piece = pooled(piece)
    for name, child in children[pools[0] + 2 :]:
        piece += (
            read_classifier(child, name)
            if isinstance(child, (nn.Linear, nn.Sequential))
            else read_identity(child, name)
        )
    return finish(sequential, piece, "model")


def match(module: nn.Module, recurse: Recurse) -> Match | None:
    """A Sequential of layers that is one block, or a whole network; longer ones are left to :func:`runs`."""
    if not isinstance(module, nn.Sequential):
        return None
    children = _children(module)
    candidate = all(_is_layer(child) for _, child in children) and any(isinstance(c, nn.Conv2d) for _, c in children)
    try:
        is_a(module, nn.Sequential)
        network = _match_network(module, recurse)
        if network is not None:
            return network
        piece, layers = _read(module, recurse)
    except RefusedError:
        if candidate:
            raise
        return None
    if not layers or len(merge_stem(piece.items)) != 1:
        return None
    return finish(module, piece, "block")


def runs(sequential: nn.Sequential, recurse: Recurse) -> list[Run]:
    """Maximal runs of two or more consecutive children that form one chain, in order.

    A convolution with the BatchNorm and activation that follow it counts as matched children; so does a nested
    Sequential that is matched throughout.  Children that are the identity never begin or end a run.
    """
    try:
        if not is_a(sequential, nn.Sequential):
            return []
    except RefusedError:
        return []
    children = _children(sequential)
    groups: list[list[_Unit]] = [[]]
    for part in _scan(children, recurse):
        if isinstance(part, _Gap):
            groups.append([])
        else:
            groups[-1].append(part)
    found: list[Run] = []
    for group in groups:
        while group and not group[0].piece.items:
            group.pop(0)
        while group and not group[-1].piece.items:
            group.pop()
        if not group or group[-1].stop - group[0].start < 2:
            continue
        start, stop = group[0].start, group[-1].stop
        piece = sum((unit.piece for unit in group), Piece())
        try:
            found.append(Run(start, stop, finish(sequential, piece, "run", [name for name, _ in children[start:stop]])))
        except RefusedError:
            continue
    return found
