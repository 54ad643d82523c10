"""Drives CMake, which holds the one list of sources and flags; packaging metadata stands in pyproject.toml."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "build_backend"))

from environment import BuildError, Cuda, Torch, cuda_part, find_tools, find_torch, parallel_jobs  # noqa: E402

# Every shared library is an Extension, because editable installs copy only those beside the sources.
OPS = "mobilenet_ext.libmobilenet_ext_ops"
CUDA = "mobilenet_ext.libmobilenet_ext_cuda"
MODULE = "mobilenet_ext._C"


class CMakeBuild(build_ext):
    """Builds every extension with one CMake run."""

    def get_ext_filename(self, fullname: str) -> str:
        """The operator libraries hold no Python, so their names carry no Python version."""
        if fullname.rsplit(".", 1)[-1] in (OPS.rsplit(".", 1)[-1], CUDA.rsplit(".", 1)[-1]):
            return os.path.join(*fullname.split(".")) + ".so"
        return str(super().get_ext_filename(fullname))

    def build_extensions(self) -> None:
        try:
            jobs = parallel_jobs()
            torch = find_torch()
            cuda = cuda_part(torch)
            if cuda.nvcc is not None:
                added = Extension(CUDA, [])
                # What finalize_options gives those declared below; an editable install asks for it.
                added._needs_stub = False
                self.extensions.append(added)
            self.configure_and_build(torch, jobs, cuda)
        except BuildError as error:
            raise SystemExit(f"mobilenet_ext: {error}") from None
        build = self.build_directory()
        for ext in self.extensions:
            if not Path(self.get_ext_fullpath(ext.name)).is_file():
                raise SystemExit(f"mobilenet_ext: CMake finished but did not write {self.get_ext_fullpath(ext.name)}.")
        print(f"mobilenet_ext: built against torch {torch.version} in {torch.directory}")
        print((build / "parts.txt").read_text().splitlines()[0])
        print(f"CUDA part: {cuda.text}", flush=True)

    def build_directory(self) -> Path:
        return Path(self.build_temp).resolve() / "cmake"

    def configure_and_build(self, torch: Torch, jobs: int | None, cuda: Cuda) -> None:
        """Raises BuildError with one sentence; the compiler's own output stands above it."""
        try:
            import pybind11
        except ImportError:
            raise BuildError(
                "pybind11 is missing in this environment; run `pip install pybind11` or drop --no-build-isolation."
            ) from None
        tools = find_tools()
        output = Path(self.get_ext_fullpath(MODULE)).resolve().parent
        options = {
            "CMAKE_BUILD_TYPE": "Release",
            "CMAKE_MAKE_PROGRAM": tools.ninja,
            "MOBILENET_EXT_TORCH_DIR": str(torch.directory),
            "MOBILENET_EXT_NVCC": str(cuda.nvcc or ""),
            "MOBILENET_EXT_GENCODE": cuda.gencode,
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
        }
        build = self.build_directory()
        build.mkdir(parents=True, exist_ok=True)
        # CMake remembers compilers and paths from its first run: start afresh when any of them moved.
        compiler = {name: os.environ.get(name) for name in ("CXX", "CXXFLAGS", "LDFLAGS")}
        inputs = repr([tools.cmake, options, compiler])
        remembered = build / "inputs.txt"
        if not remembered.is_file() or remembered.read_text() != inputs:
            shutil.rmtree(build)
            build.mkdir()
        arguments = [f"-D{key}={value}" for key, value in options.items()]
        arguments.append(f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={output}")
        configure = [tools.cmake, "-S", str(ROOT), "-B", str(build), "-G", "Ninja", *arguments]
        run_configure(configure)
        remembered.write_text(inputs)
        command = [tools.cmake, "--build", str(build)] + (["--parallel", str(jobs)] if jobs else [])
        sys.stdout.flush()
        if subprocess.run(command, check=False).returncode != 0:
            raise BuildError("the C++ sources did not compile; the compiler's first error above says why.")


def run_configure(command: list[str]) -> None:
    """Runs CMake; when a check of ours stops it, its sentence becomes the error, without CMake's frame around it."""
    sys.stdout.flush()
    result = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if result.returncode == 0:
        sys.stderr.write(result.stderr)
        return
    ours = re.search(r"mobilenet_ext: (.+?)\n(\n|Call Stack)", result.stderr, re.DOTALL)
    if ours is None:
        sys.stderr.write(result.stderr)
        raise BuildError("CMake could not configure the build; its message above says why.")
    raise BuildError(" ".join(ours[1].split()))


setup(ext_modules=[Extension(MODULE, []), Extension(OPS, [])], cmdclass={"build_ext": CMakeBuild})
