"""Where the PyTorch that runs keeps a tensor's storage and version.

Nothing here is part of PyTorch's interface, so nothing is assumed: the offsets are found by looking for values that
PyTorch's own getters give (``Tensor._cdata``, ``UntypedStorage._cdata``, ``data_ptr``, ``storage_offset``,
``_version``), must be the same for several tensors of different kinds, and are checked once more against the getters
for every list of tensors that is to be watched.  Where any of this fails, :func:`watch` returns None and the getters
are called on every call instead, which is slower and just as right.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from mobilenet_ext._library import native

_WORD = 8
# Bytes that are looked at: no more than these objects have had in any PyTorch from 2.10 on.
_IMPL_BYTES = 160
_STORAGE_BYTES = 64
_COUNTER_BYTES = 24


def _places(address: int, size: int, value: int) -> set[int]:
    """Offsets of the words at ``address`` that hold ``value``."""
    words = native.read_words(address, size // _WORD)
    return {index * _WORD for index, word in enumerate(words) if word == value}


def _common(found: list[set[int]]) -> int | None:
    """The first offset in all of ``found``."""
    both = set.intersection(*found)
    return min(both) if both else None


def _halves(counter: int) -> list[int]:
    words = native.read_words(counter, _COUNTER_BYTES // _WORD)
    return [half for word in words for half in (word & 0xFFFFFFFF, word >> 32)]


def _probes() -> list[Tensor]:
    """Tensors with unlike storages, offsets and versions."""
    # Its data lie in the middle of another object, whose address the storage holds as well.
    borrowed = torch.frombuffer(bytearray(4096), dtype=torch.float32, offset=64)
    owned = torch.zeros(1000)
    integer = torch.zeros(3, dtype=torch.int64)
    parameter = torch.nn.Parameter(torch.zeros(7, 5))
    probes = [borrowed[5:], owned[431:], integer, parameter, torch.zeros(64)[17:40:2], torch.zeros(())]
    for bumps, probe in enumerate(probes):
        for _ in range(3 * bumps):
            probe.add_(1)
    return probes


def _find() -> tuple[int, int, int, int, int, int] | None:
    probes = _probes()
    storages = [probe.untyped_storage() for probe in probes]
    impl = _common([_places(id(t), type(t).__basicsize__, t._cdata) for t in probes])
    storage = _common([_places(t._cdata, _IMPL_BYTES, s._cdata) for t, s in zip(probes, storages, strict=True)])
    data = _common([_places(s._cdata, _STORAGE_BYTES, s.data_ptr()) for s in storages])
    offset = _common([_places(t._cdata, _IMPL_BYTES, int(t.storage_offset())) for t in probes])
    if impl is None or storage is None or data is None or offset is None:
        return None
    # The version counter has no getter of its own; it and the storage are all that a tensor shares with its detached
    # self and with nobody else.
    detached = [probe.detach() for probe in probes]
    shared: list[set[int]] = []
    for probe, twin in zip(probes, detached, strict=True):
        mine = native.read_words(probe._cdata, _IMPL_BYTES // _WORD)
        his = native.read_words(twin._cdata, _IMPL_BYTES // _WORD)
        others = {word for t in probes if t is not probe for word in native.read_words(t._cdata, _IMPL_BYTES // _WORD)}
        shared.append(
            {i * _WORD for i, (a, b) in enumerate(zip(mine, his, strict=True)) if a == b and a > 1 << 16 and a % 8 == 0}
            - {i * _WORD for i, a in enumerate(mine) if a in others}
            - {storage}
        )
    both = set.intersection(*shared)
    if len(both) != 1:
        return None
    counter = both.pop()
    counters = [native.read_words(probe._cdata + counter, 1)[0] for probe in probes]
    versions = [
        {place for place, value in enumerate(_halves(address)) if value == probe._version}
        for address, probe in zip(counters, probes, strict=True)
    ]
    version = _common(versions)
    return None if version is None else (impl, storage, counter, offset, data, 4 * version)


@functools.lru_cache(maxsize=1)
def offsets() -> tuple[int, int, int, int, int, int] | None:
    """Byte offsets (implementation, storage, counter, storage offset, data, version), None where they are not found.

    ``MOBILENET_EXT_GETTERS=1`` gives None: PyTorch's getters are then used.
    """
    if (
        os.environ.get("MOBILENET_EXT_GETTERS", "0") not in ("", "0")
        or sys.maxsize != 2**63 - 1
        or sys.byteorder != "little"
    ):
        return None
    try:
        with torch.inference_mode(False), torch.no_grad():
            return _find()
    except (AttributeError, RuntimeError, TypeError):
        return None


def watch(tensors: list[Tensor]) -> Callable[[], bool] | None:
    """A function that says whether ``tensors`` still have their storages and versions; None where that is not known.

    It keeps no reference: whoever calls it keeps the tensors alive.
    """
    places = offsets()
    if places is None:
        return None
    seen = native.TensorWatch(tensors, places)
    for index, tensor in enumerate(tensors):
        first = tensor.data_ptr() - tensor.storage_offset() * tensor.element_size()
        if seen.version(index) != tensor._version or (tensor.numel() and seen.storage_data(index) != first):
            return None
    unchanged: Callable[[], bool] = seen.unchanged
    return unchanged
