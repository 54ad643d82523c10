"""Swapping the modules of a model for fused ones, and back."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any, TypeVar

from torch import nn

import mobilenet_ext.modules  # noqa: F401  registers the classes that plain ones become
from mobilenet_ext.dead_channels import drop_dead_channels as remove_dead_channels
from mobilenet_ext.freshness import bump_epoch
from mobilenet_ext.matchers import Match, match_module
from mobilenet_ext.modules.chain import FusedChain
from mobilenet_ext.modules.mixin import RUNS, fused_chains, swap_in, swap_out
from mobilenet_ext.modules.runs import Runs, find_runs
from mobilenet_ext.modules.switch import switch

_Model = TypeVar("_Model", bound=nn.Module)


def fuse(
    model: _Model,
    inplace: bool = False,
    preserve_format: bool = False,
    drop_dead_channels: bool = False,
    training: bool = True,
) -> _Model:
    """``model`` with every supported block, run of blocks and known whole network on fused kernels.

    ``inplace=False`` leaves ``model`` alone and returns a copy; ``inplace=True`` keeps the very Parameter objects,
    which an optimizer may already hold.  Attributes, children and ``state_dict`` keys stay.  Wrappers
    (DistributedDataParallel, ``torch.compile``) are looked into.  What is not supported stays PyTorch;
    ``fusion_report`` says why.  A model that is fused already is matched again.

    Fused modules return channels_last; with ``preserve_format=True`` each returns its input's memory format.
    ``drop_dead_channels=True`` also removes hidden channels whose depthwise kernel is zero, which changes no result
    but the shapes of a checkpoint; ``fusion_report(...).dropped`` says how many, with a bound of the error.
    With ``training=False`` blocks in training mode run as plain PyTorch.  TypeError if ``model`` is no
    ``torch.nn.Module``.
    """
    _require_module(model)
    if not inplace:
        model = copy.deepcopy(model)
    for module in model.modules():
        swap_out(module)
    if drop_dead_channels:
        remove_dead_channels(model)
    # Everything is matched before anything is swapped, because matchers read plain classes.
    for module, state, method in list(_plan(model, preserve_format, training, set())):
        swap_in(module, state, method)
    return model


def _plan(
    module: nn.Module, follow_input: bool, training: bool, seen: set[int]
) -> Iterator[tuple[nn.Module, FusedChain | Runs, str]]:
    """What to swap at and below ``module``.  Whole models and runs also have their parts swapped, for when they fall
    back; a block's own parts stay plain."""
    if id(module) in seen:
        return
    seen.add(id(module))
    match = match_module(module)
    if isinstance(match, Match):
        yield module, FusedChain(module, match, follow_input, training), match.method
        if match.level == "block":
            return
    elif isinstance(module, nn.Sequential):
        runs = find_runs(module, follow_input, training)
        if runs is not None:
            yield module, runs, RUNS
    for child in module.children():
        yield from _plan(child, follow_input, training, seen)


def unfuse(model: _Model, inplace: bool = False) -> _Model:
    """The way back: the same weights in modules of the classes they had before ``fuse``.

    ``inplace=False`` returns a copy.  TypeError if ``model`` is no ``torch.nn.Module``.
    """
    _require_module(model)
    if not inplace:
        model = copy.deepcopy(model)
    for module in model.modules():
        swap_out(module)
    return model


def refresh(model: nn.Module) -> None:
    """Pack the weights anew at the next call, after an edit that nothing can see (parts of ``.data``, NumPy writes)."""
    _require_module(model)
    for module in model.modules():
        for chain in fused_chains(module):
            chain.distrust()
    bump_epoch()


def freeze(model: _Model) -> _Model:
    """Promise that weights, modes and hooks of ``model`` stay: its calls no longer check them.

    Packs the weights.  Without gradients a graph of ``torch.compile`` then takes none of the model's tensors as inputs,
    which is what makes its calls as cheap as eager ones.  Still seen: ``train()``, ``load_state_dict``, dtype
    conversion and ``refresh``; after these a compiled model takes its tensors as inputs again until the next
    ``freeze``.  Returns ``model``; ``fuse`` it again to take the promise back.
    """
    _require_module(model)
    for module in model.modules():
        for chain in fused_chains(module):
            chain.freeze(module)
    return model


@contextlib.contextmanager
def disabled() -> Iterator[None]:
    """Run fused modules of the whole process as plain PyTorch inside the ``with`` block; may be nested."""
    switch.turn(1)
    try:
        yield
    finally:
        switch.turn(-1)


def _require_module(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; allowed: a torch.nn.Module")
