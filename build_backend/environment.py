"""What the build needs to know of the machine: platform, torch, tools and switches.

Shared by the PEP 517 backend and by setup.py, which run in different processes and, without build isolation, without
each other.  Every failure is a :class:`BuildError` whose text is one sentence for the person who installs.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

MINIMUM_TORCH = (2, 10)
MINIMUM_CMAKE = (3, 24)
MACHINES = ("x86_64", "aarch64")

# Runs in the interpreter that the package is installed for.  -E drops PYTHONPATH, by which pip lays its build
# environment over that interpreter, so the probe sees what the finished package will see.
_PROBE = """
import importlib.util, json, sys
sys.path = [entry for entry in sys.path if entry]
spec = importlib.util.find_spec("torch")
print(json.dumps(spec.origin if spec else None))
"""


class BuildError(Exception):
    """Why the package cannot be built here."""


@dataclass(frozen=True)
class Torch:
    """A PyTorch installation on disk."""

    directory: Path
    version: str


@dataclass(frozen=True)
class Tools:
    """Absolute paths of the programs that drive the build."""

    cmake: str
    ninja: str


def check_platform() -> None:
    """Raises BuildError unless this is Linux on x86-64 or aarch64 with a 64-bit Python."""
    system, machine = platform.system(), platform.machine()
    if system != "Linux" or machine not in MACHINES or sys.maxsize < 2**32:
        raise BuildError(f"this platform is {system} {machine}; supported are Linux on x86_64 and on aarch64, 64 bits.")


def find_target_torch() -> Torch | None:
    """The torch of the environment that the package goes into, or None; raises BuildError when it is too old."""
    probe = subprocess.run([sys.executable, "-E", "-c", _PROBE], capture_output=True, text=True, check=False)
    origin = json.loads(probe.stdout) if probe.returncode == 0 else None
    return _checked_torch(origin)


def find_torch() -> Torch:
    """The torch to build against: the target environment's, else the build environment's own."""
    torch = find_target_torch()
    if torch is None:
        spec = find_spec("torch")
        torch = _checked_torch(spec.origin if spec else None)
    if torch is None:
        raise BuildError("torch is missing in this environment; run `pip install torch` or drop --no-build-isolation.")
    if not (torch.directory / "include/torch/csrc/stable/library.h").is_file():
        raise BuildError(f"the torch in {torch.directory} has no C++ headers; reinstall torch from a wheel.")
    return torch


def _checked_torch(origin: str | None) -> Torch | None:
    if origin is None:
        return None
    directory = Path(origin).resolve().parent
    try:
        text = (directory / "version.py").read_text()
    except OSError:
        return None
    # Reading the file instead of importing torch saves seconds and works from outside its environment.
    match = re.search(r"__version__\s*=\s*['\"]((\d+)\.(\d+)[^'\"]*)['\"]", text)
    if match is None:
        raise BuildError(f"{directory / 'version.py'} names no torch version; reinstall torch.")
    if (int(match[2]), int(match[3])) < MINIMUM_TORCH:
        wanted = ".".join(map(str, MINIMUM_TORCH))
        raise BuildError(f"torch {match[1]} in {directory} is too old; mobilenet_ext needs torch {wanted} or newer.")
    return Torch(directory, match[1])


def build_requirements() -> list[str]:
    """Requirement strings for what is missing: cmake, ninja, torch."""
    missing = []
    if _cmake_on_path() is None:
        missing.append("cmake>=" + ".".join(map(str, MINIMUM_CMAKE)))
    if shutil.which("ninja") is None:
        missing.append("ninja")
    if find_target_torch() is None:
        missing.append("torch>=" + ".".join(map(str, MINIMUM_TORCH)))
    return missing


def find_tools() -> Tools:
    """Raises BuildError naming the program that is missing."""
    cmake, ninja = _cmake_on_path(), shutil.which("ninja")
    if cmake is None or ninja is None:
        name = "ninja" if cmake else f"cmake {'.'.join(map(str, MINIMUM_CMAKE))} or newer"
        raise BuildError(f"{name} is not on the PATH; run `pip install cmake ninja` or drop --no-build-isolation.")
    compilers = [os.environ["CXX"].split()[0]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    if not any(map(shutil.which, compilers)):
        raise BuildError(f"no C++ compiler found (looked for {', '.join(compilers)}); install g++ or set CXX.")
    return Tools(cmake, ninja)


def _cmake_on_path() -> str | None:
    """The cmake on the PATH if it is new enough."""
    cmake = shutil.which("cmake")
    if cmake is None:
        return None
    answer = subprocess.run([cmake, "--version"], capture_output=True, text=True, check=False).stdout
    match = re.search(r"version (\d+)\.(\d+)", answer)
    return cmake if match and (int(match[1]), int(match[2])) >= MINIMUM_CMAKE else None


def parallel_jobs() -> int | None:
    """MAX_JOBS as a number, None when it is unset."""
    text = os.environ.get("MAX_JOBS", "").strip()
    if not text:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise BuildError(f"MAX_JOBS is {text!r}; allowed is a whole number of at least 1.")
    return int(text)


@dataclass(frozen=True)
class Cuda:
    """What the CUDA part is built with, or why it is not built (``nvcc`` is then None)."""

    nvcc: Path | None
    gencode: str
    text: str


# What TORCH_CUDA_ARCH_LIST stands for when it is unset: code for these, and PTX for whatever comes after the last.
CUDA_ARCHITECTURES = "8.0;9.0;10.0+PTX"


def cuda_part(torch: Torch) -> Cuda:
    """Whether and how to build the CUDA part; BuildError when MOBILENET_EXT_CUDA asks for what is not there.

    ``auto`` builds it when nvcc with its headers is found and torch has CUDA; whether a GPU is visible plays no part.
    """
    wish = os.environ.get("MOBILENET_EXT_CUDA", "auto")
    if wish not in ("auto", "0", "1"):
        raise BuildError(f"MOBILENET_EXT_CUDA is {wish!r}; allowed are auto, 1 and 0.")
    if wish == "0":
        return Cuda(None, "", "not built (MOBILENET_EXT_CUDA=0)")
    reason = None
    nvcc = find_nvcc()
    if not (torch.directory / "lib/libtorch_cuda.so").is_file():
        reason = f"the torch in {torch.directory} has no CUDA"
    elif nvcc is None:
        reason = "no nvcc with its headers was found (looked in CUDA_HOME, on the PATH and in /usr/local/cuda*)"
    if reason is not None:
        if wish == "1":
            raise BuildError(f"MOBILENET_EXT_CUDA=1 asks for the CUDA part, but {reason}.")
        return Cuda(None, "", f"not built ({reason})")
    gencode = gencode_options(os.environ.get("TORCH_CUDA_ARCH_LIST") or CUDA_ARCHITECTURES)
    return Cuda(nvcc, gencode, f"built by {nvcc}")


def find_nvcc() -> Path | None:
    """An nvcc whose toolkit has headers: in CUDA_HOME, behind the one on the PATH, or in the usual places."""
    homes = [Path(value) for name in ("CUDA_HOME", "CUDA_PATH") if (value := os.environ.get(name))]
    if (found := shutil.which("nvcc")) is not None:
        path = Path(found).resolve()
        homes.append(path.parent.parent)
        homes += _named_in_wrapper(path)
    homes += [Path("/usr/local/cuda"), *sorted(Path("/usr/local").glob("cuda-*"), reverse=True)]
    for home in homes:
        if (home / "bin/nvcc").is_file() and (home / "include/cuda_runtime.h").is_file():
            return home / "bin/nvcc"
    return None


def _named_in_wrapper(path: Path) -> list[Path]:
    """The toolkits that a shell script named nvcc calls."""
    with path.open("rb") as file:
        if file.read(2) != b"#!":
            return []
    return [Path(match) for match in re.findall(r"(/[^\s\"']+)/bin/nvcc", path.read_text(errors="replace"))]


def gencode_options(architectures: str) -> str:
    """nvcc's options for a list in the form of TORCH_CUDA_ARCH_LIST, such as ``8.0;9.0+PTX``."""
    options = []
    for word in architectures.replace(",", ";").replace(" ", ";").split(";"):
        if not word:
            continue
        match = re.fullmatch(r"(\d+)\.(\d+)([af]?)(\+PTX)?", word)
        if match is None:
            raise BuildError(f"TORCH_CUDA_ARCH_LIST has {word!r}; allowed are entries such as 8.0, 9.0a and 9.0+PTX.")
        number = match[1] + match[2] + match[3]
        if (int(match[1]), int(match[2])) < (8, 0):
            raise BuildError(f"TORCH_CUDA_ARCH_LIST has {word}; the CUDA kernels need 8.0 or newer.")
        options.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if match[4]:
            options.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    if not options:
        raise BuildError("TORCH_CUDA_ARCH_LIST names no architecture.")
    return " ".join(options)
