"""The backends in order of preference; each answers whether it can run a chain and, if not, why.

A backend is a module with a ``name``, a one-line ``description`` and ``unsupported(spec, device, dtype)``, which
returns the reason or None.  Adding one is one file and one entry in :data:`BACKENDS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from mobilenet_ext.backends import aten, cpu, cuda, triton
from mobilenet_ext.spec import ChainItem


class Backend(Protocol):
    """What every entry of :data:`BACKENDS` offers."""

    name: str
    description: str

    def unsupported(self, spec: ChainItem, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why this backend cannot run ``spec`` on tensors of this device and dtype, or None if it can."""


BACKENDS: tuple[Backend, ...] = (cpu, cuda, triton, aten)


def unsupported(backend: Backend, chain: Sequence[ChainItem], device: torch.device, dtype: torch.dtype) -> str | None:
    """The first reason why ``backend`` cannot run the whole chain, or None if it can."""
    return next((reason for item in chain if (reason := backend.unsupported(item, device, dtype))), None)


def choose(
    chain: Sequence[ChainItem], device: torch.device, dtype: torch.dtype
) -> tuple[Backend | None, dict[str, str]]:
    """The first backend that runs the whole chain (None if there is none), and why each one before it does not.

    Never looks at sizes or strides: what depends on them is decided inside the backend.
    """
    reasons: dict[str, str] = {}
    for backend in BACKENDS:
        reason = unsupported(backend, chain, device, dtype)
        if reason is None:
            return backend, reasons
        reasons[backend.name] = reason
    return None, reasons
