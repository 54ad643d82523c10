"""What a contender is: how it takes a model in, and how it is called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from torch import Tensor, nn

Runner = Callable[[], Any]  # one inference on the example; returns a tensor or an array


def same_model(model: nn.Module, example: Tensor) -> Any:
    """The conversion of a contender that runs the module itself."""
    return model


@dataclass(frozen=True)
class Rival:
    """A contender.

    ``convert(model, example)`` is what does not depend on the number of threads, and may take minutes;
    ``load(converted, example, threads)`` returns the call that is timed, under inference mode, with torch's own number
    of threads already set.  Both import their packages themselves and may raise anything; that is reported.
    ``setting`` is what a reader needs in order to repeat it; ``packages`` are the distributions, the first the one
    that names it.  Batches below ``smallest_batch`` are not for it.
    """

    name: str
    setting: str
    packages: tuple[str, ...]
    load: Callable[[Any, Tensor, int], Runner]
    convert: Callable[[nn.Module, Tensor], Any] = same_model
    smallest_batch: int = 1
    is_ours: bool = False

    @property
    def version(self) -> str:
        """Such as ``onnxruntime 1.32.0``; the package's name alone where it is not installed."""
        return ", ".join(filter(None, (_version(package) for package in self.packages)))


def _version(package: str) -> str:
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return f"{package} (not installed)"
