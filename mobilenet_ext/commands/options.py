"""Options that several commands share."""

from __future__ import annotations

import argparse

MODEL_HELP = (
    "reference:v1, reference:v2, a torchvision or timm name (random weights), module:callable, or a file: a "
    "torch.export package (.pt2) or a pickled module (see --allow-pickle)"
)


def positive(text: str) -> int:
    """An integer above zero, for argparse."""
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def add_model(parser: argparse.ArgumentParser, metavar: str = "MODEL") -> None:
    """The model, its weights, and the permission to unpickle."""
    parser.add_argument("model", metavar=metavar, help=MODEL_HELP)
    add_files(parser)


def add_files(parser: argparse._ActionsContainer) -> None:
    """The options of :class:`mobilenet_ext.loading.Files`."""
    parser.add_argument("--weights", metavar="FILE", help="a state_dict for the model; only tensors are read from it")
    parser.add_argument(
        "--allow-pickle",
        action="store_true",
        help="read a pickled module; this can run any code in the file, so only for files that you trust",
    )
