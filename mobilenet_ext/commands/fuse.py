"""``mobilenet-ext fuse MODEL``: what of a model is fused, and the fused model as a torch.export package."""

from __future__ import annotations

import argparse

from mobilenet_ext.commands import options

DESCRIPTION = "Fuse a model and print the report; exit status 1 if nothing was fused."


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("fuse", help="what of a model is fused, and why not", description=DESCRIPTION)
    options.add_model(parser)
    parser.add_argument("--size", type=options.positive, metavar="PIXELS", help="side of the image (default: its own)")
    parser.add_argument("--drop-dead-channels", action="store_true", help="remove channels whose kernel is zero")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON instead of a table")
    form.add_argument("--markdown", action="store_true", help="print Markdown instead of a table")
    parser.add_argument("--export", metavar="FILE", help="also write the fused model as a torch.export package (.pt2)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    import torch
    from rich.console import Console

    from mobilenet_ext import loading
    from mobilenet_ext.fusion import fuse
    from mobilenet_ext.report import fusion_report

    with Console(stderr=True).status(f"fusing {args.model}"):
        model = loading.load(args.model, args.size, weights=args.weights, allow_pickle=args.allow_pickle)
        size = args.size or loading.input_size(model)
        example = torch.randn(1, loading.input_channels(model), size, size)
        # An exported program is one graph of operators already, with nothing to swap.
        exported = isinstance(model, torch.fx.GraphModule)
        fused = model if exported else fuse(model, drop_dead_channels=args.drop_dead_channels)
        report = fusion_report(fused, None if exported else example)
        if args.export:
            with torch.no_grad():
                torch.export.save(torch.export.export(fused, (example,)), args.export)
    print(report.to_json() if args.json else report.to_markdown() if args.markdown else report)
    return 0 if any(row.fused for row in report.rows) else 1
