"""The ``mobilenet-ext`` command: argument parsing, dispatch, exit statuses and one-line errors, nothing else.

Exit status 0 is success, 1 a failed check, 2 something that could not be run, 130 an interrupt.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

# Each is a module of mobilenet_ext.commands; heavy imports belong in its run().
COMMANDS = ("info", "fuse", "verify", "bench", "cost", "inspect", "demo")
_EXTRAS = {
    "fuse": "bench",
    "verify": "bench",
    "bench": "bench",
    "inspect": "bench",
    "demo": "demo",
}  # what installs its optional packages
_EXPECTED = (ValueError, RuntimeError, ImportError, OSError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (without the program's name) and return its exit status."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    args = _parser(arguments).parse_args(arguments)
    try:
        status: int = args.run(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader, such as `head`, has gone: keep the interpreter from failing again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except _EXPECTED as error:
        if args.traceback or not _is_ours(error):
            raise
        print(f"mobilenet-ext {args.command}: {_sentence(error, args.command)}", file=sys.stderr)
        return 2
    return status


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mobilenet-ext", description="Fused MobileNet blocks for PyTorch.")
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    asked = next((argument for argument in arguments if not argument.startswith("-")), "")
    # Only the module asked for is imported; for a help text or a wrong name, all.
    for name in (asked,) if asked in COMMANDS else COMMANDS:
        import_module(f"mobilenet_ext.commands.{name}").add_parser(subparsers)
    return parser


def _is_ours(error: BaseException) -> bool:
    """Whether this package raised ``error``, or called what did; anything deeper is a bug and keeps its traceback."""
    if isinstance(error, ModuleNotFoundError):
        return not (error.name or "").startswith("mobilenet_ext")
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(__file__).parent in Path(frames[-1].filename).parents


def _sentence(error: BaseException, command: str) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        extra = _EXTRAS.get(command)
        how = f"pip install 'mobilenet_ext[{extra}]'" if extra else f"pip install {error.name}"
        return f"the package {error.name!r} is not installed; {how} brings it"
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
