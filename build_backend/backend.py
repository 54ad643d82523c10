"""PEP 517 backend: setuptools, plus what this build needs and the target environment lacks.

Torch in ``build-system.requires`` would make pip download a second torch and build against the wrong one.  So torch is
a build requirement only where the environment that the package goes into has none; else the build uses that one.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import setuptools
from environment import BuildError, build_requirements, check_platform
from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    build_sdist,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

ConfigSettings = Mapping[str, Any] | None

# Without build isolation nobody enforces build-system.requires, and older releases reject pyproject.toml at length.
if int(setuptools.__version__.split(".")[0]) < 77:
    raise SystemExit(
        f"mobilenet_ext: setuptools {setuptools.__version__} is too old; "
        "run `pip install 'setuptools>=77'` or drop --no-build-isolation."
    )


def get_requires_for_build_wheel(config_settings: ConfigSettings = None) -> list[str]:
    """Setuptools' requirements plus cmake, ninja and torch where they are missing.

    Exits with one sentence on an unsupported platform or too old a torch, before anything is downloaded.
    """
    try:
        check_platform()
        extra = build_requirements()
    except BuildError as error:
        raise SystemExit(f"mobilenet_ext: {error}") from None
    return [*build_meta.get_requires_for_build_wheel(config_settings), *extra]


get_requires_for_build_editable = get_requires_for_build_wheel


def build_wheel(
    wheel_directory: str, config_settings: ConfigSettings = None, metadata_directory: str | None = None
) -> str:
    """Setuptools' wheel, without modules that an earlier build left in ``build/lib*`` and the tree no longer has."""
    for stale in Path("build").glob("lib*"):
        shutil.rmtree(stale)
    return str(build_meta.build_wheel(wheel_directory, config_settings, metadata_directory))
