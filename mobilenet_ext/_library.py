"""Loads the operator library and the Python module beside it, with a clear error when they are missing or broken."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import torch

LIBRARY = Path(__file__).with_name("libmobilenet_ext_ops.so")


def _fail(what: str, error: BaseException | None = None) -> ImportError:
    cause = "" if error is None else f": {error}"
    return ImportError(
        f"mobilenet_ext: {what} (torch {torch.__version__}, Python {sys.version.split()[0]}){cause}. "
        "Install it again with `pip install .` in the source directory; the library runs on torch 2.10 and newer."
    )


def load() -> ModuleType:
    """The module ``_C``; operators are registered as ``torch.ops.mobilenet_ext`` on the way."""
    if not LIBRARY.is_file():
        raise _fail(f"the operator library {LIBRARY.name} is not beside the package, so the native part was not built")
    try:
        torch.ops.load_library(str(LIBRARY))
    except OSError as error:
        raise _fail(f"the operator library {LIBRARY.name} does not load", error) from error
    try:
        from mobilenet_ext import _C
    except ImportError as error:
        raise _fail("the Python module _C does not load", error) from error
    return _C


native = load()
