"""Which candidate runs an item now, and the chain operators on a GPU.

``MOBILENET_EXT_GPU`` says how far kernels are trusted:

* ``check`` (default): at the first call of each (item, dtype, shape class) on a device the candidates run beside
  PyTorch's operators on the caller's tensors; wrong or slower ones are never used.  The verdict is kept on disk.
* ``trust``: the first candidate runs without a check.
* ``off``: PyTorch's operators run.

While a CUDA graph is captured nothing is checked, compiled or synchronised: an item that has a verdict and whose kernel
has run in this process runs as chosen, every other one in PyTorch.
"""

from __future__ import annotations

import os
import threading
from collections import Counter

import torch
from torch import Tensor

from mobilenet_ext.backends.gpu.choices import Choices, shape_key
from mobilenet_ext.backends.gpu.packing import PackedItem
from mobilenet_ext.backends.gpu.plans import BASELINE, Candidate, candidates, run_aten
from mobilenet_ext.backends.gpu.trial import Verdict, seconds_per_call, try_out
from mobilenet_ext.spec import BlockSpec, ChainItem

MODES = ("check", "trust", "off")


def mode() -> str:
    """The value of MOBILENET_EXT_GPU; ValueError if it is none of ``MODES``."""
    value = os.environ.get("MOBILENET_EXT_GPU", "check")
    if value not in MODES:
        raise ValueError(f"MOBILENET_EXT_GPU is {value!r}; allowed: {', '.join(MODES)}")
    return value


def is_capturing(x: Tensor) -> bool:
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def usable_backends(x: Tensor) -> tuple[str, ...]:
    """Names of the backends whose kernels may run on the device of ``x``, in order."""
    from mobilenet_ext.backends import cuda, triton

    if not x.is_cuda:  # the interpreter runs Triton kernels on CPU tensors; only tests come here
        from mobilenet_ext.backends.triton import common

        return ("triton",) if common.INTERPRETED else ()
    index = x.device.index or 0
    usable = []
    if cuda.device_reason(index) is None:
        usable.append("cuda")
    if triton.installed() is None and triton.device_reason(index) is None:
        usable.append("triton")
    return tuple(usable)


class Runtime:
    """Verdicts and counters of one process; ``timer`` and ``list_candidates`` are replaced by tests."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.choices: dict[torch.device, Choices] = {}
        self.warm: set[tuple[torch.device, str]] = set()
        self.counters: Counter[str] = Counter()
        self.last: dict[str, Verdict] = {}
        self.timer = seconds_per_call
        self.list_candidates = candidates
        self.backends = usable_backends
        self.capturing = is_capturing

    def choices_of(self, device: torch.device) -> Choices:
        found = self.choices.get(device)
        if found is None:
            found = self.choices[device] = Choices(device)
        return found

    def run_item(self, packed: PackedItem, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """One item on ``x``: (N, C, H, W), or (N, features) for a linear item.

        ``shortcut`` is the input of the item before, for a block with ``residual_back``, which PyTorch runs.
        """
        trust = mode()
        item = packed.item
        if trust == "off" or not isinstance(item, BlockSpec) or item.residual_back or x.numel() == 0:
            return self._count(BASELINE, run_aten(packed, x, shortcut))
        planar = x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last)
        key = shape_key(packed.item, x, planar)
        if self.capturing(x):
            return self._captured(key, packed, x)
        found = self.list_candidates(packed, x, self.backends(x))
        if trust == "trust":
            return self._trusted(key, found, packed, x)
        verdict = self.choices_of(x.device).get(key)
        if verdict is None or (verdict.choice != BASELINE and _named(found, verdict.choice) is None):
            with self.lock:
                verdict = try_out(packed, x, found, self.timer)
                self.choices_of(x.device).put(key, verdict)
        self.last[key] = verdict
        candidate = _named(found, verdict.choice)
        if candidate is None:
            return self._baseline(packed, x)
        self.warm.add((x.device, key))
        return self._count(candidate.name, candidate.run(packed, x))

    def _captured(self, key: str, packed: PackedItem, x: Tensor) -> Tensor:
        verdict = self.last.get(key)
        if verdict is None or verdict.choice == BASELINE or (x.device, key) not in self.warm:
            return self._baseline(packed, x)
        candidate = _named(self.list_candidates(packed, x, self.backends(x)), verdict.choice)
        if candidate is None:
            return self._baseline(packed, x)
        return self._count(candidate.name, candidate.run(packed, x))

    def _trusted(self, key: str, found: list[Candidate], packed: PackedItem, x: Tensor) -> Tensor:
        failed = self.last[key].rejected if key in self.last else {}
        for candidate in found:
            if candidate.name in failed:
                continue
            try:
                y = candidate.run(packed, x)
            except Exception as error:  # cannot be compiled or launched here: the next one may
                failed[candidate.name] = f"{type(error).__name__}: {error}"
                continue
            self.last[key] = Verdict(candidate.name, rejected=failed)
            self.warm.add((x.device, key))
            return self._count(candidate.name, y)
        self.last[key] = Verdict(BASELINE, rejected=failed)
        return self._baseline(packed, x)

    def _baseline(self, packed: PackedItem, x: Tensor) -> Tensor:
        return self._count(BASELINE, run_aten(packed, x))

    def _count(self, name: str, y: Tensor) -> Tensor:
        self.counters[name] += 1
        return y

    def verdict_on(self, packed_item: ChainItem, x: Tensor) -> Verdict | None:
        """The last verdict on an item for an image like ``x``, for reports."""
        planar = x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last)
        return self.last.get(shape_key(packed_item, x, planar))


runtime = Runtime()


def _named(found: list[Candidate], name: str) -> Candidate | None:
    return next((candidate for candidate in found if candidate.name == name), None)


def run_packed(packed: list[PackedItem], x: Tensor, follow_input: bool) -> Tensor:
    """A packed chain on ``x`` (N, C, H, W) of its dtype and device; the result lies as the CPU's kernels lay it out."""
    planar = follow_input and (x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last))
    y = before = x
    for packed_item in packed:
        entry = y
        item = packed_item.item
        y = runtime.run_item(packed_item, y, before if isinstance(item, BlockSpec) and item.residual_back else None)
        before = entry
    if y.dim() == 4:
        y = y.contiguous() if planar else y.contiguous(memory_format=torch.channels_last)
        if y.numel() and 1 in y.shape:
            y = _exact_strides(y, planar)
    return y.clone() if y is x else y


def _exact_strides(y: Tensor, planar: bool) -> Tensor:
    """``contiguous`` keeps whatever strides dimensions of one element have; the fake kernel promises those of empty."""
    layout = torch.contiguous_format if planar else torch.channels_last
    wanted = torch.empty_like(y, device="meta", memory_format=layout).stride()
    return y if y.stride() == wanted else y.as_strided(y.shape, wanted)
