"""``mobilenet-ext verify NAME``: fuse a model and compare it with float64, module by module."""

from __future__ import annotations

import argparse
import json
import sys

from mobilenet_ext.commands import options

DESCRIPTION = "Fuse a model and compare every output and every fused module with float64; exit status 1 on a failure."


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("verify", help="compare a fused model with float64", description=DESCRIPTION)
    options.add_model(parser, "NAME")
    parser.add_argument("--size", type=_positive, metavar="PIXELS", help="side of the image (default: the model's own)")
    parser.add_argument("--batch", type=_positive, default=1, metavar="N", help="images in the batch (default: 1)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=run)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """0 if everything is within tolerance, 1 if something is not or nothing was fused, 2 if there is no such model."""
    import torch
    from rich.console import Console

    from mobilenet_ext import loading
    from mobilenet_ext.fusion import fuse
    from mobilenet_ext.verification import verify

    with Console(stderr=True).status(f"verifying {args.model}"):
        try:
            model = loading.load(args.model, args.size, weights=args.weights, allow_pickle=args.allow_pickle)
        except loading.LoadError as error:
            print(f"mobilenet-ext verify: {error}", file=sys.stderr)
            return 2
        size = args.size or loading.input_size(model)
        generator = torch.Generator().manual_seed(0)
        example = torch.randn(args.batch, loading.input_channels(model), size, size, generator=generator)
        result = verify(model, fuse(model), example)
    ok = result.ok and result.fused > 0
    if args.json:
        print(json.dumps({"model": args.model, "shape": list(example.shape), **result.to_dict(), "ok": ok}, indent=2))
    else:
        print(result)
        verdict = "within tolerance" if result.ok else "OUT OF TOLERANCE"
        print(
            f"{args.model}: {result.fused} fused modules, {verdict}"
            if result.fused
            else f"{args.model}: nothing was fused"
        )
    return 0 if ok else 1
