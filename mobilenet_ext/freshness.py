"""When packed weights may be trusted: the slot that holds them, the epoch, and the stamp of their sources.

The native side keeps one packed entry per slot and rebuilds it when a source's address, version or contents differ.
In eager mode that check is made here, in Python, so that a call passes one slot instead of hundreds of tensors.
Some edits change neither address nor version (a ``fused=True`` optimizer step, BatchNorm statistics in training).
Everything that may make such an edit advances the epoch, and after an epoch the contents themselves are compared.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from mobilenet_ext import layout
from mobilenet_ext._library import native

_version_of = attrgetter("_version")
_address_of = torch.Tensor.data_ptr


class Epoch:
    """The process-wide epoch: ``token`` is a new object after every bump, so no thread can mistake an old one."""

    __slots__ = ("token",)

    def __init__(self) -> None:
        self.token = object()


_epoch = Epoch()


def bump_epoch() -> None:
    """Distrust every packed entry until its contents have been compared with its sources."""
    _epoch.token = object()
    native.bump_epoch()


def current_epoch() -> object:
    """The token of the epoch of now."""
    return _epoch.token


def _after_optimizer_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    # A compiled step marks what it wrote in the version counters, and a call to the library would break its graph.
    if not torch.compiler.is_compiling():
        bump_epoch()


_optimizer_hook: Any = None


def watch_optimizers() -> None:
    """Advance the epoch after every optimizer step of this process; later calls change nothing."""
    global _optimizer_hook
    if _optimizer_hook is None:
        _optimizer_hook = register_optimizer_step_post_hook(_after_optimizer_step)


_freed: list[Callable[[int], None]] = []
_distrusted: list[Callable[[int], None]] = []


def when_freed(action: Callable[[int], None]) -> None:
    """Call ``action`` with the number of every slot that is freed from now on."""
    _freed.append(action)


def when_distrusted(action: Callable[[int], None]) -> None:
    """Call ``action`` with the number of every slot whose packed form is not to be trusted any more."""
    _distrusted.append(action)


def distrust(slot: int) -> None:
    """Make every backend outside the native library pack ``slot`` again at its next call with all sources."""
    for action in _distrusted:
        action(slot)


def _free(slot: int) -> None:
    native.free_slot(slot)
    for action in _freed:
        action(slot)


class Slot:
    """The native place of one packed entry; freed with the object, never copied or pickled.

    ``tensor`` is the 0-d int64 tensor that the operators take.
    """

    __slots__ = ("__weakref__", "id", "tensor")

    def __init__(self) -> None:
        self.id: int = native.new_slot()
        with torch.inference_mode(False):
            self.tensor = torch.tensor(self.id, dtype=torch.int64, device="cpu")
        weakref.finalize(self, _free, self.id)

    def __deepcopy__(self, memo: dict[int, Any]) -> Slot:
        return Slot()

    def __reduce__(self) -> tuple[type[Slot], tuple[()]]:
        return Slot, ()


class Stamp(NamedTuple):
    """What the sources of a packed entry looked like just before it was built or checked.

    ``versions`` is empty when one of them is an inference tensor: those carry none, and no such stamp is ever fresh.
    """

    epoch: object
    tensors: list[torch.Tensor]
    versions: list[int]
    addresses: list[int]
    unchanged: Callable[[], bool] | None  # the same comparison in one native loop


class SourceWatch:
    """The sources of a chain, and whether the ``_parameters`` and ``_buffers`` of their owners still hold them."""

    __slots__ = ("_entries", "holds", "tensors")

    def __init__(self, owners: Sequence[torch.nn.Module], names: Sequence[str]) -> None:
        """Raise ``KeyError`` with the name that an owner has neither as parameter nor as buffer."""
        self._entries: list[tuple[dict[str, Any], str, torch.Tensor]] = []
        for owner, name in zip(owners, names, strict=True):
            store: dict[str, Any] = owner._parameters if name in owner._parameters else owner._buffers
            if store.get(name) is None:
                raise KeyError(name)
            self._entries.append((store, name, store[name]))
        self.tensors = [tensor for _, _, tensor in self._entries]
        self.holds = native.Watch(self._entries, [], []).holds


def take_stamp(tensors: list[torch.Tensor]) -> Stamp:
    """What ``tensors`` look like now."""
    tracked = not any(map(torch.Tensor.is_inference, tensors))
    versions = list(map(_version_of, tensors)) if tracked else []
    unchanged = layout.watch(tensors) if tracked else None
    return Stamp(_epoch.token, tensors, versions, list(map(_address_of, tensors)), unchanged)


def is_fresh(stamp: Stamp) -> bool:
    """Whether the tensors of ``stamp`` still have its storages and versions, in the same epoch."""
    if stamp.epoch is not _epoch.token or not stamp.versions:
        return False
    if stamp.unchanged is not None:
        return stamp.unchanged()
    try:
        return (
            list(map(_version_of, stamp.tensors)) == stamp.versions
            and list(map(_address_of, stamp.tensors)) == stamp.addresses
        )
    except (RuntimeError, TypeError, AttributeError):
        return False


def hidden_change(old: Stamp, new: Stamp) -> bool:
    """Whether the sources may differ although their versions and addresses, all that the native check sees, agree."""
    if not new.versions:
        return True
    if old.versions != new.versions or old.addresses != new.addresses:
        return False
    return any(a is not b for a, b in zip(old.tensors, new.tensors, strict=True))
