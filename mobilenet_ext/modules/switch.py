"""The off switch: ``disabled()`` and the environment variable ``MOBILENET_EXT_DISABLE``."""

from __future__ import annotations

import os
import threading


class Switch:
    """The process-wide off switch of ``disabled()`` and ``MOBILENET_EXT_DISABLE=1``; counts how deep it is nested."""

    __slots__ = ("depth", "lock")

    def __init__(self) -> None:
        self.depth = int(os.environ.get("MOBILENET_EXT_DISABLE", "0") not in ("", "0"))
        self.lock = threading.Lock()

    def turn(self, step: int) -> None:
        with self.lock:
            self.depth += step


switch = Switch()
