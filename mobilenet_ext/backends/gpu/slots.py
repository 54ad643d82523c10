"""Packed chains by slot on a GPU: the freshness rules of ``docs/freshness.md`` without reading device memory.

An entry is fresh while every source is the same memory at the same version in the same epoch.  Contents are never
compared, since that would wait for the device: after an epoch the chain is packed again, which is a few small kernels.
Inference tensors carry no version, so a chain of those is packed at every call that passes them.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mobilenet_ext import freshness
from mobilenet_ext.backends.gpu.packing import PackedItem, pack, pack_into
from mobilenet_ext.spec import Program, decode


@dataclass
class Entry:
    """One chain with the tensors it was packed from, and its packed forms by dtype of the image.

    ``pinned`` is set once a CUDA graph has captured its memory: it is then packed again in place.
    """

    key: tuple[tuple[int, ...], tuple[float, ...]]
    program: Program
    stamp: freshness.Stamp
    packed: dict[torch.dtype, list[PackedItem]] = field(default_factory=dict)
    pinned: bool = False
    trusted: bool = True

    def for_dtype(self, dtype: torch.dtype, capturing: bool = False) -> list[PackedItem]:
        """The packed form; one made under capture is not kept, since until a replay its memory holds nothing."""
        found = self.packed.get(dtype)
        if found is None:
            found = pack(self.program.chain, self.stamp.tensors, dtype)
            if not capturing:
                self.packed[dtype] = found
        return found


_entries: dict[int, Entry] = {}
_lock = threading.Lock()


def _release(slot: int) -> None:
    _entries.pop(slot, None)


def _distrust(slot: int) -> None:
    if (entry := _entries.get(slot)) is not None:
        entry.trusted = False


freshness.when_freed(_release)
freshness.when_distrusted(_distrust)


def _is_fresh(entry: Entry, sources: Sequence[Tensor]) -> bool:
    stamp = freshness.take_stamp(list(sources))
    old = entry.stamp
    return bool(
        entry.trusted
        and stamp.versions
        and old.epoch is stamp.epoch
        and old.versions == stamp.versions
        and old.addresses == stamp.addresses
        and all(a.shape == b.shape and a.dtype == b.dtype for a, b in zip(old.tensors, sources, strict=True))
    )


def fresh(
    slot: int | None, sources: Sequence[Tensor], program: list[int], constants: list[float], capturing: bool = False
) -> Entry:
    """The entry of ``slot`` for these sources, packed again where they may have changed.

    None packs for one call, and so does a stale slot while a CUDA graph is captured: packing is then part of the graph.
    """
    key = (tuple(program), tuple(constants))
    old = _entries.get(slot) if slot is not None else None
    if old is not None and old.key == key and _is_fresh(old, sources):
        return old
    entry = Entry(key, decode(program, constants), freshness.take_stamp([source.detach() for source in sources]))
    if slot is None or capturing:
        return entry
    with _lock:
        if old is not None and old.pinned and old.key == key:
            borrowed = set(old.stamp.addresses)
            for dtype, packed in old.packed.items():
                new = pack(entry.program.chain, sources, dtype)
                if _same_places(packed, new):
                    pack_into(packed, new, borrowed)
                    entry.packed[dtype] = packed
                    entry.pinned = True
        _entries[slot] = entry
    return entry


def _same_places(old: Sequence[PackedItem], new: Sequence[PackedItem]) -> bool:
    first, second = ([source for item in packed for source in item.sources] for packed in (old, new))
    return all(a.shape == b.shape and a.device == b.device for a, b in zip(first, second, strict=True))


def trusted(slot: int) -> Entry:
    """The entry of ``slot`` as it is; RuntimeError if there is none."""
    entry = _entries.get(slot)
    if entry is None:
        raise RuntimeError(f"slot {slot} holds nothing packed for a GPU")
    return entry
